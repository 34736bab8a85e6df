"""What ``ridgeline bench decode`` and ``attention`` do on a GPU.

================ ===============================================================================
device           timing by events with a cold L2, CUDA graphs, clocks; what a result file says
shapes           the shapes that are timed where the command line names none
decode           a decode step: each implementation, L2 prefetch on and off, roofs, peers
report           its table, notes and columns
attention        options of ``bench attention`` on a GPU
packages         other people's kernels: which are installed
decode_peers     their decode functions, and torch's SDPA by backend
attention_peers  their attention functions
================ ===============================================================================
"""
