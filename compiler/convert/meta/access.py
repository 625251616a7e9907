"""Observe which tensors a piece of code reads and writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from topkast.runtime.errors import ModelError


class Watch(TorchDispatchMode):
    """Inside a ``with``, records what operators do to the followed tensors, which are identified by their memory.

    Attributes:
        touched: names of the followed tensors that an operator used, directly or by a view.
        written: names of the followed tensors that an operator wrote to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[str] = set()
        self.written: set[str] = set()
        self._names: dict[int, str] = {}
        self._storages: dict[
            str, Any
        ] = {}  # kept alive, because a new storage could get the address of a freed storage

    def follow(self, name: str, tensor: Tensor) -> None:
        """Follow ``tensor`` under this name. If other memory had the name before, the assignment counts as a write."""
        storage, before = tensor.untyped_storage(), self._storages.get(name)
        if before is None or before._cdata != storage._cdata:
            if before is not None:
                self.forget(name)
                self.written.add(name)
                self.touched.add(name)
            self._storages[name] = storage
            self._names[storage._cdata] = name

    def forget(self, name: str) -> None:
        """Stop following the tensor with this name, and release its memory."""
        self._names.pop(self._storages.pop(name)._cdata, None)

    def shared(self) -> list[str]:
        """Names that share memory with another name."""
        return [name for name, storage in self._storages.items() if self._names[storage._cdata] != name]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "topkast":
            raise ModelError("a weight is read that is sparse by now")
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            for value in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name)):
                name = self._names.get(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None
                if name is not None:
                    self.touched.add(name)
                    if argument.alias_info is not None and argument.alias_info.is_write:
                        self.written.add(name)
        return func(*args, **kwargs)
