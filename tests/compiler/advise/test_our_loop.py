"""A plain recurrent layer runs the loop of a compiled sparse layer, so that the loop can be timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topkast.compiler.advise import estimate as module
from topkast.compiler.advise.our_loop import in_our_loop


class Seen(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def loops(layer: nn.Module, given: Any) -> tuple[int, Tensor]:
    with Seen() as seen:
        out = layer(given)[0]
    return seen.names.count("topkast.recurrence.default"), out


@pytest.mark.parametrize("kind, options", [(nn.LSTM, {}), (nn.GRU, {"bidirectional": True}), (nn.RNN, {})])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_a_layer_runs_the_operator_and_gives_the_same(kind: Any, options: Any, needs_gradient: bool) -> None:
    torch.manual_seed(0)
    layer, x = kind(16, 16, num_layers=2, **options), torch.randn(5, 3, 16, requires_grad=needs_gradient)
    mkldnn = torch._C._get_mkldnn_enabled()
    count, expected = loops(layer, x)
    assert count == 0
    weights = torch.autograd.grad(expected.square().sum(), layer.parameters())
    with in_our_loop():
        count, out = loops(layer, x)
        found = torch.autograd.grad(out.square().sum(), layer.parameters())
    assert count == (4 if options else 2) and torch._C._get_mkldnn_enabled() == mkldnn
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-4)


def test_packed_sequences_run_as_always() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 16), torch.randn(3, 16)])
    for layer in (nn.LSTM(16, 16), nn.GRU(16, 16)):
        expected = layer(packed)[0].data
        with in_our_loop():
            torch.testing.assert_close(layer(packed)[0].data, expected)


def test_a_step_in_loops_is_timed_in_our_loop() -> None:
    """PyTorch's own loop took twice as long as ours, and the estimate of an LSTM of width 650 was twice too high."""
    step, linear = (module._Step(one, (torch.randn(3, 2, 16),), {}) for one in (nn.LSTM(16, 16), nn.Linear(16, 16)))
    with Seen() as seen:
        assert step.seconds_in_loops()
    assert "topkast.recurrence.default" in seen.names and "topkast.recurrence_backward.default" in seen.names
    assert linear.seconds_in_loops() is None
