"""``attention`` on Hopper, in Gluon: TMA, wgmma, warp specialisation.

=========  ======================================================================================
config     what the kernels support and how they are tiled; does not import Triton
tensors    inputs as the tensor memory unit reads them
ring       tiles in shared memory between a producer and consumers
work       which tiles of query rows a program computes, and over which tiles of keys each goes
consumer   a consumer warpgroup of the forward kernel: scores, online softmax, output
careful    rows whose result is not finite, once more
forward    the forward kernel, its producer and its launcher
=========  ======================================================================================
"""
