"""From MHA, MQA or GQA weights to first weights of GTA, MLA or GLA.

The method is in ``docs/convert.md``.

| module | what it holds |
|---|---|
| ``factor`` | the best low-rank factors, and the RoPE key that stands for several |
| ``layers`` | a layer's weights, from grouped-query to tied and to latent |
| ``model`` | a whole model; the statistics of a text; the errors |
"""

from ridgeline.models.convert.model import LayerError, convert, output_errors

__all__ = ["LayerError", "convert", "output_errors"]
