"""Pretraining on text files: ``from ridgeline.training.pretrain import pretrain``.

Preference training is ``ridgeline.training.preference``.

| module | what it holds |
|---|---|
| ``config`` | every setting of a run |
| ``data``, ``tokenizer`` | text, its split, batches; byte-level BPE |
| ``pretrain`` | the loop |
| ``loss``, ``optimizer``, ``schedule``, ``evaluate`` | its parts |
| ``checkpoint``, ``export`` | what survives a kill; the finished model |
| ``log``, ``progress``, ``cli`` | CSV and curve; the terminal; the command |
| ``ngram`` | the baseline to beat |
| ``continuations`` | preference pairs of real text |
"""
