"""Explain the error if a state dict is loaded into the wrong kind of model, and say what to call instead.

The user loads a sparse model's state dict into a dense model, or a dense model's state dict into a sparse model. The
error of torch only lists keys and sizes, which do not show the cause. Only the text of the error is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from topkast.runtime.errors import CheckpointError
from topkast.runtime.state.find_sites import SparseState, joined, sites_of
from topkast.runtime.state.persist.state_dict import DENSE, STATE

from .outside import DENSE_STATES

SPARSE = (
    "the state dict is of a sparse model, and this one is dense: call topkast.sparsify(model, ...) first, with the "
    "arguments of then, or load topkast.dense_state_dict(sparse_model)"
)


def explain_mixed_up() -> None:
    """From now on, let ``nn.Module.load_state_dict`` explain this error."""
    given = nn.Module.load_state_dict
    if hasattr(given, "explains"):
        return

    @functools.wraps(given)
    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return given(self, state_dict, *args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, CheckpointError) or not _is_sparse(state_dict) or _is_converted(self):
                raise
            raise CheckpointError(f"{type(self).__name__}: {SPARSE}. {error}") from error

    load_state_dict.explains = SPARSE  # type: ignore[attr-defined]
    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _is_sparse(keys: Iterable[str]) -> bool:
    return any(f".{STATE}." in f".{key}" for key in keys)


def _is_converted(model: nn.Module) -> bool:
    return any(isinstance(module, SparseState) for module in model.modules())


explain_mixed_up()  # at import, because a program that loads into a dense model may convert no model


def refuse_dense(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Pre-hook of a converted model's ``load_state_dict``: refuse a dense model's state dict before anything is loaded.
    A trainer that resumes from a shared folder gives a dense state dict; the folder's sparse state takes its place.

    Raises:
        CheckpointError: a sparse weight is dense in the state dict.
    """
    if any(replaced(module, state, prefix) for replaced in DENSE_STATES):
        return
    for path, part in module.named_modules():
        for attribute, site in sites_of(part).items():
            key = prefix + joined(path, attribute)
            if isinstance(state.get(key), Tensor) and tuple(state[key].shape) == site.geometry.shape:
                raise CheckpointError(f"{key}: a dense weight of shape {site.geometry.shape}; {DENSE}")
