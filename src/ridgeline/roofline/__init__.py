"""What the machine can do at best, measured."""

from ridgeline.roofline.roofs import Roofs, gemm, read

__all__ = ["Roofs", "gemm", "read"]
