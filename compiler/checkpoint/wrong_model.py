"""A sparse model's state dict that is loaded into a dense model: torch's error, and what to call instead.

torch lists keys and sizes, which do not say where they come from. Nothing is changed but the text of the error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn

from topkast.runtime.errors import CheckpointError
from topkast.runtime.state.saved import STATE

SPARSE = (
    "the state dict is of a sparse model, and this one is dense: call topkast.sparsify(model, ...) first, with the "
    "arguments of then, or load topkast.dense_state_dict(sparse_model)"
)


def explain_mixed_up() -> None:
    """Let ``nn.Module.load_state_dict`` say so, from now on."""
    given = nn.Module.load_state_dict
    if hasattr(given, "explains"):
        return

    @functools.wraps(given)
    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return given(self, state_dict, *args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, CheckpointError) or not _is_sparse(state_dict) or _is_sparse(self.state_dict()):
                raise
            raise CheckpointError(f"{type(self).__name__}: {SPARSE}. {error}") from error

    load_state_dict.explains = SPARSE  # type: ignore[attr-defined]
    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _is_sparse(keys: Iterable[str]) -> bool:
    return any(f".{STATE}." in f".{key}" for key in keys)


explain_mixed_up()  # for a program that only imports topkast too: the dense model is the one that is loaded
