"""Pretraining on text files: data, tokenizer, schedule, checkpoints, and a baseline to beat."""
