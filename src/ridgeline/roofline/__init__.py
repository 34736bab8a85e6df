"""What the machine can do at best, measured."""

from ridgeline.roofline.roofs import Roofs, gemm, gemm_dtype, read

__all__ = ["Roofs", "gemm", "gemm_dtype", "read"]
