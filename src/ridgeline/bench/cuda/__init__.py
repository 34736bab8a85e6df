"""What ``ridgeline bench decode`` and ``attention`` do on a GPU.

================ ===============================================================================
device           timing by events with a cold L2, CUDA graphs, clocks; what a result file says
shapes           the shapes that are timed where the command line names none
trials           calls that passed their check, and why the others did not
decode           a decode step: a row for every implementation of a shape
prefetch         our kernels with L2 prefetch at a given distance
report, compare  the decode table and notes; what rows say together
packages         other people's kernels: which are installed
decode_peers     their decode functions, and torch's SDPA by backend
attention_peers  their attention functions
run              the commands
================ ===============================================================================
"""
