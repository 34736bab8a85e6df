from ridgeline.ops.tied_decode.api import tied_decode

__all__ = ["tied_decode"]
