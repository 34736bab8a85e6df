"""``ridgeline bench dpo``: training steps on preference pairs, with and without shared prefixes.

========= ==================================================================
profiles  lengths of six preference datasets, drawn
ways      the model, and every way to compute a step of it
trainers  TRL's own trainer and ours as two of them
measure   a profile: every way checked, then timed in turns
report    the rows as a table, notes and a plot
run       the command
========= ==================================================================
"""
