"""Recurrent layers: inside the graph, all their products sparse, and no dense weight read beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast


class Sequence(nn.Module):
    """A recurrent layer between two linear ones, so that its input has a gradient too."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.into, self.rnn = nn.Linear(5, 8), kind(8, 12, batch_first=True, **options)
        width = options.get("proj_size", 12) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.into(x))[0])


KINDS = {
    "lstm": lambda: Sequence(nn.LSTM, num_layers=2),
    "projected": lambda: Sequence(nn.LSTM, proj_size=6),
    "both ways": lambda: Sequence(nn.LSTM, bidirectional=True, bias=False),
    "gru": lambda: Sequence(nn.GRU),
    "rnn": lambda: Sequence(nn.RNN, nonlinearity="relu"),
    "bare": lambda: nn.LSTM(5, 12),
}


QUICK = ("lstm", "rnn", "bare")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in KINDS]
)
def test_every_product_is_sparse(name: str) -> None:
    sparse = topkast.compile(KINDS[name](), min_size=1, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 5)
    for _ in range(2):  # what guards read would count at the second call
        output = sparse(x)
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    rows = topkast.report(sparse).sites
    assert rows
    for row in rows:
        assert row["unfused"] == [], row["name"]
        assert {"forward", "weight gradient"} <= row["fused"].keys(), row["name"]
    assert torch._C._get_mkldnn_enabled(), "switched off for the trace only"
    assert not torch._dynamo.config.allow_rnn


@pytest.mark.parametrize("make", [lambda: Sequence(nn.LSTM), lambda: nn.LSTM(5, 12)])
def test_beside_a_plain_model(make: Callable[[], nn.Module]) -> None:
    """Dynamo leaves plain recurrent layers to Python, and remembers that with the code both have; in either order."""

    def train(model: nn.Module) -> nn.Module:
        output = model(torch.randn(2, 1, 5))
        (output[0] if isinstance(output, tuple) else output).sum().backward()
        return model

    def plain() -> int:
        graphs: list[Any] = []

        def count(module: Any, inputs: Any) -> Any:
            graphs.append(module)
            return module.forward

        train(torch.compile(make(), backend=count))
        return len(graphs)

    def ours() -> None:
        for row in topkast.report(train(topkast.compile(make(), min_size=1, backend="aot_eager"))).sites:
            assert row["unfused"] == [] and "weight gradient" in row["fused"], row["name"]

    before = plain()
    ours()
    torch._dynamo.reset()
    ours()
    assert plain() == before
    ours()


def test_flat_weights_follow_a_copy_and_a_cast() -> None:
    sparse = topkast.compile(nn.LSTM(5, 12), min_size=1, backend="eager")
    x = torch.randn(4, 2, 5)
    sparse.double()
    (output, _), (again, _) = sparse(x.double()), topkast.densify(sparse)(x.double())
    torch.testing.assert_close(output, again)


def test_the_graph_does_not_grow_with_the_sequence() -> None:
    """One operator for each layer, and one more compilation for all other lengths."""
    sparse = topkast.compile(Sequence(nn.LSTM, num_layers=2), min_size=1, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for batch, length in [(2, 7), (2, 9), (2, 5)]:
        sparse(torch.randn(batch, length, 5)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one length, then all
    for row in topkast.report(sparse).sites:
        assert row["unfused"] == [], row["name"]
        if "weight_hh" in row["name"]:
            assert sum(row["fused"]["forward"].values()) == 3, "one operator a call"


def test_a_recurrent_model_is_left_to_aot_eager() -> None:
    model = topkast.compile(Sequence(nn.GRU), min_size=1)
    assert topkast.report(model).backend == "aot_eager (most sparse weights are recurrent)"
    other = topkast.compile(nn.Sequential(nn.Linear(64, 64), Sequence(nn.RNN)), min_size=1)
    assert topkast.report(other).backend == "inductor"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_values_and_gradients_are_those_of_eager_mode(kind: type[nn.RNNBase]) -> None:
    x = torch.randn(2, 4, 5)
    results = []
    for backend in ("eager", "aot_eager"):
        torch.manual_seed(0)
        sparse = topkast.compile(Sequence(kind, bidirectional=True), min_size=1, backend=backend)
        output = sparse(x)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in sparse.parameters())])
    torch.testing.assert_close(*results)
