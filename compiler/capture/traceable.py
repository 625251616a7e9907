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
    """Let attention and ``nn.Transformer`` be what they say, in operators that can be seen; the result is the same.

    A mask's values are compared with those of a causal mask, to give attention the hint that it is one. A graph ends
    there, and as nothing in torch.nn is compiled on its own, neither is the whole model: here a mask is taken as it is.
    Without gradients a whole layer is one opaque operator, which reads dense weights: here it is its products.
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


# Both are of the whole process: of several threads the first to come changes them, the last to leave puts them back.
_lock = threading.Lock()
_inside, _usual = list[None](), list[Any]()


def _only_if_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


def hides(model: nn.Module) -> bool:
    """Whether :func:`in_the_open` makes a difference to a model."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerDecoder)
    return any(isinstance(part, kinds) for part in model.modules())


def within(context: Callable[[], Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` inside a new context for each call; inside a program that compiles around it, ``call`` runs unchanged."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if torch.compiler.is_compiling() else context():
            return call(*args, **kwargs)

    return run
