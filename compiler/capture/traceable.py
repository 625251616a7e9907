"""Replace code of torch.nn that cannot be traced by equivalent code while a model is traced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.backends import mha
from torch.nn.modules import transformer


@contextlib.contextmanager
def in_the_open() -> Iterator[None]:
    """Let attention and ``nn.Transformer`` run as visible operators with the same result.

    torch compares a mask's values with the values of a causal mask, to give attention a hint. This comparison ends a
    graph, and because nothing in torch.nn is compiled on its own, the whole model would not be compiled. Here the
    comparison is left out. Without gradients torch runs a whole layer as one opaque operator, which reads dense
    weights. Here the layer runs as its products.
    """
    with _lock:
        if not _inside:
            _usual[:] = transformer._detect_is_causal_mask, mha.get_fastpath_enabled()
            transformer._detect_is_causal_mask = _only_if_said
            mha.set_fastpath_enabled(False)
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                transformer._detect_is_causal_mask = _usual[0]
                mha.set_fastpath_enabled(_usual[1])


# Both changes affect the whole process: the first thread makes the changes, and the last thread reverts them.
_lock = threading.Lock()
_inside, _usual = list[None](), list[Any]()


def _only_if_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


def hides(model: nn.Module) -> bool:
    """Whether :func:`in_the_open` makes a difference to a model."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerDecoder)
    return any(isinstance(part, kinds) for part in model.modules())


def within(context: Callable[[], Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` inside a new context for each call; while an outer program compiles, ``call`` runs unchanged."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if torch.compiler.is_compiling() else context():
            return call(*args, **kwargs)

    return run
