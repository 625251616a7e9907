"""What torch.nn does that no trace gets through, done in another way while a model is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

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
    looks, fast = transformer._detect_is_causal_mask, mha.get_fastpath_enabled()
    transformer._detect_is_causal_mask = _only_if_said
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = looks
        mha.set_fastpath_enabled(fast)


def _only_if_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


def hides(model: nn.Module) -> bool:
    """Whether :func:`in_the_open` makes a difference to a model."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerDecoder)
    return any(isinstance(part, kinds) for part in model.modules())


def within(context: Callable[[], Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` inside of a context made anew each time."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with context():
            return call(*args, **kwargs)

    return run
