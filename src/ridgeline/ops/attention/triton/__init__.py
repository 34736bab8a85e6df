"""``attention`` by Triton: forward and gradients on any GPU from compute capability 8.0.

========== =====================================================================================
config     what the kernels support and how they are tiled; does not import Triton
forward    the forward kernel and its launcher
backward   delta, then dK with dV, then dQ, each in a kernel of its own
========== =====================================================================================

Which tile of which sequence, and which query sees which key: ``ops.attention.tiles``.
"""
