"""Benchmarks: every number is measured beside its roofs and its peers, in one run."""
