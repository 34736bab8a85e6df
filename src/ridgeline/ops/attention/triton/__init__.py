"""``attention`` by Triton: forward and gradients on any GPU from compute capability 8.0.

========== =====================================================================================
config     what the kernels support and how they are tiled; does not import Triton
tiles      which tile of which sequence, loads, which query sees which key
forward    the forward kernel and its launcher
backward   delta, then dK with dV, then dQ, each in a kernel of its own
========== =====================================================================================
"""
