"""Assemble θ, take θ apart and move it between indices: in native code if it fits, otherwise in plain PyTorch."""

from topkast.runtime.native.theta import assemble, follow, store

__all__ = ["assemble", "follow", "store"]
