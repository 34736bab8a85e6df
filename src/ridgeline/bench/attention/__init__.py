"""``ridgeline bench attention``, ``memory`` and ``accuracy``.

======== ==================================================================
shapes   the shapes of the rows, their visible pairs and FLOPs
calls    one way to compute a row, forward and backward; ours, and unpacked
peers    PyTorch's ways, and the float32 truth
measure  a row: every call checked, then timed in turns
report   the rows as a table, notes and a plot
memory   peak memory of a pass in a process of its own, which runs peak
accuracy errors of FP16 and FP8 against float64 on inputs with outliers
run      the commands
======== ==================================================================
"""
