from ridgeline.ops.paged_decode.api import paged_decode

__all__ = ["paged_decode"]
