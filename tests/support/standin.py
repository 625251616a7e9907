"""A device that is not there, for tests of what is where and when.

Its tensors say that they are elsewhere, and lie in host memory, counted. Operators that PyTorch dispatches run on them;
code that takes their address finds nothing. Copies are made as early, or as late, as they may be.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # a build without CUDA will have none of a GPU


class Bytes:
    """What is alive, and the most that was since ``reset``."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def reset(self) -> None:
        self.most = self.now

    def hold(self, owner: Any, size: int) -> None:
        """Count ``size`` while ``owner`` lives."""
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(owner, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


MEMORY = Bytes()  # of the device
_storages: weakref.WeakValueDictionary[int, _Storage] = weakref.WeakValueDictionary()


class _Storage:
    """One storage on the device, shared by all of its views."""


class OnDevice(Tensor):
    """A tensor on the device."""

    held: Tensor
    storage: _Storage

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        found = Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE)
        place = held.untyped_storage().data_ptr()
        storage = _storages.get(place) if place else None
        if storage is None:
            storage = _Storage()
            MEMORY.hold(storage, held.untyped_storage().nbytes())
            _storages[place] = storage
        found.held, found.storage = held, storage
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator, on what the tensors hold. A result is on the device if an operand is, or where ``device`` says."""
    there = any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs)))
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu"), **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    inner = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if func._schema.is_mutable:  # in place: what it was given is what it gives
        return args[0] if isinstance(out, Tensor) else out
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, out) if there else out


def move(module: torch.nn.Module) -> None:
    """``module.cuda()``, to the stand-in. Its parameters become new objects, as they are of another class there."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        module._apply(lambda tensor: OnDevice(tensor.clone()))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class Device(TorchDispatchMode):
    """While it is entered, tensors can be made on the device too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Engine:
    """Copies as ``topkast.runtime.state.change.streaming`` has them.

    Args:
        late: make a copy when somebody waits for it, and not before; else when it is asked for.
    """

    def __init__(self, late: bool) -> None:
        self.late = late
        self.queue: list[Callable[[], object]] = []
        self.pinned = Bytes()
        self.log: list[str] = []

    def room(self, like: Tensor) -> Tensor:
        found = torch.full(like.shape, 77, dtype=like.dtype)  # nothing that could be right by chance
        self.pinned.hold(found, found.nbytes)
        return found

    def copy(self, target: Tensor, source: Tensor) -> None:
        if not isinstance(target, OnDevice) and not isinstance(source, OnDevice):
            target.copy_(source)  # in host memory, without a stream
            return
        self.log.append("up" if isinstance(target, OnDevice) else "down")
        self.queue.append(lambda: target.copy_(source))
        if not self.late:
            self._make(1)

    def _make(self, count: int) -> None:
        for _ in range(count):
            self.queue.pop(0)()

    def record_event(self) -> Event:
        return Event(self, len(self.log))

    def finish(self) -> None:
        self.log.append("finish")
        self._make(len(self.queue))


class Event:
    def __init__(self, engine: Engine, place: int) -> None:
        self.engine, self.place = engine, place

    def synchronize(self) -> None:
        made = len(self.engine.log) - len(self.engine.queue)
        self.engine._make(max(0, self.place - made))
