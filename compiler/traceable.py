"""What torch.nn does that no trace gets through, done in another way while a model is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules import transformer


@contextlib.contextmanager
def masks_as_given() -> Iterator[None]:
    """Let ``nn.Transformer`` and its parts take a mask as it is.

    They compare its values with those of a causal mask, to give attention the hint that it is one. A graph ends there,
    and as nothing in torch.nn is compiled on its own, neither is the whole model. What is computed is the same.
    """
    looks = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _only_if_said
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = looks


def _only_if_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


def has_masks(model: nn.Module) -> bool:
    """Whether :func:`masks_as_given` makes a difference to a model."""
    return any(isinstance(part, (nn.TransformerEncoder, nn.TransformerDecoder)) for part in model.modules())


def within(context: Callable[[], Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` inside of a context made anew each time."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with context():
            return call(*args, **kwargs)

    return run
