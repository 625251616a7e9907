"""Run the recurrent layers of a plain model as a compiled sparse model runs them: as one loop of :mod:`topkast`.

oneDNN's operator for a whole dense layer says nothing about a loop. PyTorch's own loop, which keeps each small result
for its backward, took twice the time of ours for an LSTM of width 650: an estimate with it was 0.86 of dense, where
0.42 was measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from topkast.compiler.capture.trace_recurrent import as_one_operator

_OPERATORS: dict[Any, Any] = {
    getattr(torch._VF, name): getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
}


@contextlib.contextmanager
def in_our_loop() -> Iterator[None]:
    """Inside the ``with``, a recurrent layer runs ``topkast::recurrence`` with its dense weight."""
    mkldnn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # otherwise a layer whose input has no gradient is decomposed to oneDNN's
    try:
        with as_one_operator(), _Decomposed():
            yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)


def has_recurrent_layers(model: nn.Module) -> bool:
    """Whether a part of a model is an LSTM, a GRU or a simple recurrent layer."""
    return any(isinstance(part, nn.RNNBase) for part in model.modules())


class _Decomposed(TorchFunctionMode):
    """Layers run as torch decomposes them for its compilers. Packed sequences run as they always do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = _OPERATORS.get(func)
        if operator is None or not isinstance(args[2], list):  # the third is the list of weights, or the state
            return func(*args, **(kwargs or {}))
        return operator.decompose(*args, **(kwargs or {}))
