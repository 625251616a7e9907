"""θ put together, taken apart and carried along: native code where it fits, else plain PyTorch."""

from topkast.runtime.native.theta import assemble, follow, store

__all__ = ["assemble", "follow", "store"]
