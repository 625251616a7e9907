"""What no trace gets through of itself: masks that are looked at, weights that Python reads."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mha

import topkast
from topkast.compiler.capture.trace import capture
from topkast.compiler.capture.traceable import in_the_open
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, plain, sgd


class Masked(nn.Module):
    """Of a causal mask, and of one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.net(x, mask) + self.net(x, mask.T.flip(0))


@pytest.mark.long
def test_a_transformer_with_masks_is_one_graph() -> None:
    """torch.nn compares a mask's values with those of a causal one, where plain torch.compile's graph ends."""
    options = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager", "fullgraph": True}
    trio = Trio(Case("masked", Masked, (3, 5, 8), ()), {**options, "example_inputs": (torch.ones(3, 5, 8),)}, sgd)
    trio.run(partial(plain, steps=3))
    report = topkast.report(trio.ours.model)
    assert report.how.startswith("torch.export") and len(report.sites) == 4
    assert all(row["unfused"] == [] for row in report.sites)
    (inputs, _), *_ = trio.case.batches(1)
    model = trio.ours.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), topkast.densify(model)(*inputs))
    assert all(row["unfused"] == [] for row in topkast.report(model).sites)
    assert nn.modules.transformer._detect_is_causal_mask.__module__ == nn.Transformer.__module__


def test_threads_that_overlap_leave_torch_as_it_was() -> None:
    looks, fast = nn.modules.transformer._detect_is_causal_mask, mha.get_fastpath_enabled()
    first, second = in_the_open(), in_the_open()
    with first:
        second.__enter__()
    assert not mha.get_fastpath_enabled()  # the second is still at work
    second.__exit__(None, None, None)
    assert (nn.modules.transformer._detect_is_causal_mask, mha.get_fastpath_enabled()) == (looks, fast)


def test_a_program_compiles_itself_around_a_compiled_transformer() -> None:
    x = torch.randn(4, 3, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0)
    inner = topkast.compile(layer, min_size=1, backend="aot_eager", example_inputs=(x,))
    graphs: list[Any] = []
    found = torch.compile(nn.Sequential(inner), backend=lambda g, _: graphs.append(g) or g.forward, fullgraph=True)(x)
    torch.testing.assert_close(found, topkast.densify(inner)(x))
    assert len(graphs) == 1


def test_a_weight_read_outside_of_a_graph_is_no_graph() -> None:
    """Where Dynamo gives up, Python reads the weights: that is not to be compiled weight by weight."""

    class Unseen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        @torch._dynamo.disable
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    graphs: list[Any] = []
    model = topkast.sparsify(Unseen(), min_size=1)
    reads = torch.compile(lambda: model.layer.weight + 0, backend=lambda g, _: graphs.append(g) or g.forward)
    torch.compile(model, backend=lambda g, _: graphs.append(g) or g.forward)(torch.ones(2, 6)).sum().backward()
    assert graphs == []
    assert torch.equal(reads(), model.layer.weight) and len(graphs) == 1  # inside of a graph it is part of it


def test_breaks_met_while_weights_are_chosen_are_not_counted() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y if y.sum().item() > 1e9 else 2 * y

    torch._dynamo.utils.counters.clear()
    model = topkast.sparsify(Broken(), min_size=1, example_inputs=(torch.ones(2, 6),))
    assert topkast.report(model).how == "Dynamo with example_inputs"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_trace_leaves_the_parameters_free_to_change_their_shape(fails: bool) -> None:
    """A trace leaves garbage, here in plain sight; the garbage must not hold autograd nodes of the real parameters."""
    kept = []

    class Keeps(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept.append(super().forward(x))
            if fails and len(kept) < 3:
                raise ValueError("cannot be traced")
            return kept[-1]

    layer = Keeps(6, 4, bias=False)
    capture(layer, torch.randn(2, 6))
    assert kept
    layer.weight.data = torch.randn(5, 6)
    layer(torch.randn(2, 6)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.shape == (5, 6)
