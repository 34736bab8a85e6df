from ridgeline.ops.attention import subtree_end
from ridgeline.ops.attention.api import attention

__all__ = ["attention", "subtree_end"]
