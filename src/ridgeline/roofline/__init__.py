"""What the machine can do at best, measured."""

from ridgeline.roofline.roofs import Roofs, copy, gemm, gemm_dtype, read

__all__ = ["Roofs", "copy", "gemm", "gemm_dtype", "read"]
