"""The quality study: variants of attention at one parameter budget, on the same tokens and seeds.

| module | what it holds |
|---|---|
| ``shapes`` | the sizes of each variant, its MLP widened to the budget |
| ``runs`` | one run, and all of them, several processes at once; a finished run is not repeated |
| ``report`` | losses with their spread, CSV and plot |
"""
