"""What every suite lists: a model, how it is built small, and what it is called with."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


def _operators() -> torch.library.Library | None:
    """The two operators without which torchvision cannot be imported, if it was built for another torch.

    transformers and timm import it if it is installed; no model here calls them. A torchvision that was built for this
    torch defines them itself, and a second definition would end the process.
    """
    folder = importlib.util.find_spec("torchvision")
    if folder is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = importlib.machinery.PathFinder.find_spec("_C", list(folder.submodule_search_locations or ()))
    if library is not None and library.origin is not None:
        with contextlib.suppress(OSError):
            torch.ops.load_library(library.origin)
            return None
    made = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        made.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return made


_OPERATORS = _operators()  # they are there as long as this is

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # positional arguments and keywords


@dataclass(frozen=True)
class Entry:
    """One model.

    Args:
        suite, name: what it is called in the table; together they are unique.
        family: what it is counted under; a suite may have several models of one family.
        build: makes it with random weights.
        batch: makes what it is called with.
        options: of ``topkast.compile``, where its defaults leave nothing to check.
        kernel: what ``TOPKAST_KERNEL`` says when it runs.
    """

    suite: str
    name: str
    family: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    options: Mapping[str, Any] = field(default_factory=dict)
    kernel: str = "dense"

    def model(self) -> nn.Module:
        """The same weights every time, without randomness of its own in training mode."""
        torch.manual_seed(0)
        return without_dropout(self.build()).train()

    def at(self, step: int) -> Batch:
        """The batch of a step: the same for every program."""
        return self.batch(torch.Generator().manual_seed(step))

    def example(self) -> Any:
        """The first batch as topkast takes it: a tuple of positional arguments, or a dict of keywords."""
        args, kwargs = self.at(1)
        if args and kwargs:
            kwargs = {**inspect.signature(self.model().forward).bind(*args).arguments, **kwargs}
        return kwargs or args


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every rate of dropout and stochastic depth to zero: two programs that draw in another order differ."""
    for module in model.modules():
        config = getattr(module, "config", None)
        for holder in [module.__dict__, *([config.__dict__] if hasattr(config, "__dict__") else [])]:
            for name, value in holder.items():
                if isinstance(value, float) and 0 < value < 1 and "drop" in name:
                    holder[name] = 0.0
        if "drop" in type(module).__name__.lower() or "stochasticdepth" in type(module).__name__.lower():
            for name in ("p", "drop_prob"):
                if isinstance(module.__dict__.get(name), float):
                    module.__dict__[name] = 0.0
    return model


def image(size: int, channels: int = 3, batch: int = 2) -> Callable[[torch.Generator], Batch]:
    """A batch of square noise images."""
    return lambda generator: ((torch.randn(batch, channels, size, size, generator=generator),), {})


def floats(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors of whatever a model returns, in order, each once."""
    seen: set[int] = set()
    for tensor in tensors(output):
        if tensor.is_floating_point() and tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from tensors(getattr(output, name))


def loss_of(output: Any) -> Tensor:
    """A number that every floating-point output takes part in, by random weights: no output's gradient is zero."""
    total: Any = 0.0
    for position, tensor in enumerate(floats(output)):
        weights = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(position))
        total = total + (tensor * weights.to(tensor.dtype)).sum() / tensor.numel() ** 0.5
    if not isinstance(total, Tensor):
        raise ValueError("the model returns nothing that can be differentiated")
    return total
