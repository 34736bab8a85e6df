"""``attention`` on Hopper, in Gluon: TMA, wgmma, warp specialisation.

=================  ===============================================================================
config             what the kernels support and how they are tiled; does not import Triton
tensors            inputs as the tensor memory unit reads them
scales             those of FP8 inputs
turned             values with keys side by side, as FP8 products read them
paged_config       which calls of paged_decode the forward kernel takes; does not import Triton
ring               tiles in shared memory between a producer and consumers
work               which tiles of rows a program computes, over which tiles of keys each goes
pages              tiles of keys and of values out of pages
values             products of probabilities with values, and the outputs that add them up
consumer           a consumer warpgroup of the forward kernel: scores, online softmax
results            what it gives: rows of the output and their lse
careful            rows whose result is not finite, once more
forward            the forward kernel, its producer and its launcher
backward_config    how the kernels of the gradient are tiled; does not import Triton
backward_products  products of tiles, as both of them issue and await them
backward_dkdv      dK and dV of a tile of keys, and what it adds to dQ
backward_dq        dQ of a tile of query rows, where it must be the same bits every time
backward_rows      what is computed row by row: delta before, dQ from its sums after
backward           the launcher of the gradient
=================  ===============================================================================
"""
