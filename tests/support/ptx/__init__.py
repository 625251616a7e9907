"""Runs PTX that Triton compiled for a GPU that is not there, on the memory of CPU tensors, with every access checked.

``driver.emulated(capability)`` makes Triton's own JIT compile for that GPU and hands each launch to ``grid.launch``.
A fault raises :class:`Fault`: an access out of bounds or not aligned, a read of memory that nobody wrote, two warps
that touch the same shared memory with no barrier between, a copy that was not waited for, two programs that write one
place.
Nothing is said about time. Warps run in lockstep; a branch that divides a warp is followed lane by lane, but no barrier
may be inside it.
"""


class Fault(RuntimeError):
    """The compiled kernel does what it must not."""
