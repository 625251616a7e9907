"""The dense view: masks, state dicts with the original keys, and the way back to a plain model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import topkast
from topkast.compiler.convert.sparsify import refresh_before_forward
from topkast.runtime.state.model import sites
from topkast.tests.support.truth.builders import CASES


def _train(case: Any, model: nn.Module, steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for inputs, target in case.batches(steps):
        case.loss(model(*inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def _output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        output = model(*inputs)
    return getattr(output, "logits", output)


KINDS = ("attention", "cnn", "einsum", "encoder", "functional", "hf_conv1d", "lstm", "mlp", "tied")


@pytest.mark.parametrize("name", KINDS)
def test_the_way_back(name: str) -> None:
    case = CASES[name]
    original, model = case.model(), topkast.sparsify(case.model(), 0.5, min_size=1, refresh_every=2)
    theta = topkast.dense_state_dict(model, "all")
    assert list(theta) == list(original.state_dict())
    assert all(torch.equal(theta[key], value) for key, value in original.state_dict().items())
    _train(case, model, 3)

    plain = topkast.densify(model)
    assert [type(m) for m in plain.modules()] == [type(m) for m in original.modules()]
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in original.named_parameters()]
    assert list(plain.state_dict()) == list(original.state_dict())
    assert not any(parametrize.is_parametrized(m) or hasattr(m, "_topkast") for m in plain.modules())
    assert refresh_before_forward not in plain._forward_pre_hooks.values()
    forward = topkast.dense_state_dict(model)
    assert all(torch.equal(forward[key], value) for key, value in plain.state_dict().items())
    for key, (fwd, _) in topkast.masks(model).items():
        assert torch.equal(forward[key], topkast.dense_state_dict(model, "all")[key] * fwd)
    ((inputs, target),) = case.batches(1, seed=5)
    torch.testing.assert_close(_output(plain.train(), inputs), _output(model.train(), inputs), rtol=1e-5, atol=1e-6)
    # The model itself is as it was, and the plain one trains on its own.
    assert list(topkast.masks(model))
    case.loss(plain(*inputs), target).backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ties_modes_and_frozen_weights_stay() -> None:
    model = topkast.sparsify(CASES["tied"].model(), 0.5, min_size=1)
    model.eval()
    model.between.sparse_state.weight.original.requires_grad_(False)
    plain = topkast.densify(model)
    assert plain.first.weight is plain.second.weight
    assert not plain.training and not plain.between.weight.requires_grad and plain.first.weight.requires_grad


def test_a_compiled_model_gives_a_plain_one() -> None:
    case = CASES["functional"]  # its parameters are the root's own
    model = topkast.compile(case.model(), 0.5, min_size=1, backend="aot_eager")
    ((inputs, _),) = case.batches(1)
    expected = _output(model, inputs)
    plain = topkast.densify(model)
    assert plain._compiled_call_impl is None
    torch.testing.assert_close(_output(plain, inputs), expected)
    assert topkast.densify(torch.compile(model, backend="eager")).w.shape == (33, 17)


def test_other_parametrizations_stay() -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 20))
    parametrizations.orthogonal(model[1], "weight")
    model[1].more = nn.Parameter(torch.randn(40, 20))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) @ self.body[1].more.t()

    sparse = topkast.sparsify(Both(), 0.5, min_size=1, include=["body.0.weight", "body.1.more"])
    assert "body.1.more" in topkast.masks(sparse)
    plain = topkast.densify(sparse)
    assert list(plain.body[1].parametrizations) == ["weight"]
    assert type(plain.body[1].more) is nn.Parameter and not isinstance(sparse.body[1].more, nn.Parameter)
    x = torch.randn(3, 30)
    torch.testing.assert_close(plain(x), sparse(x))


class Recalls(nn.Module):
    """Keeps what it last computed, as a recurrence keeps its state: no copy can have that tensor's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8), torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.tanh(self.layer(x) + self.last)
        return self.last


def test_what_a_forward_left_is_copied_without_its_graph() -> None:
    model = topkast.compile(Recalls(), fwd=0.8, bwd=0.6, min_size=1, backend="eager")
    x = torch.randn(8)
    model(x)
    assert not model.last.is_leaf
    plain = topkast.densify(model)
    assert torch.equal(plain.last, model.last) and plain.last.is_leaf
    assert torch.equal(plain(x), model(x)) and plain.last.data_ptr() != model.last.data_ptr()


def test_graph_modules() -> None:
    case = CASES["functional"]
    ((inputs, _),) = case.batches(1)
    for graph in (torch.fx.symbolic_trace(case.model()), torch.export.export(case.model(), inputs).module()):
        names = [n for n, _ in graph.named_parameters()]
        model = topkast.sparsify(graph, 0.5, min_size=1, example_inputs=inputs)
        plain = topkast.densify(model)
        assert [n for n, _ in plain.named_parameters()] == names
        torch.testing.assert_close(_output(plain, inputs), _output(model, inputs))


def test_loading_chooses_the_sets_again() -> None:
    case = CASES["mlp"]
    model, other = (topkast.sparsify(case.model(seed), min_size=500, refresh_every=2) for seed in (0, 1))
    _train(case, other, 3)
    optimizer = _train(case, model, 3)
    theta = topkast.dense_state_dict(other, "all")
    topkast.load_dense_state_dict(model, copy.deepcopy(theta))
    topkast.refresh(other)
    for key, (fwd, bwd) in topkast.masks(other).items():
        assert torch.equal(fwd, topkast.masks(model)[key][0]) and torch.equal(bwd, topkast.masks(model)[key][1])
    for key, value in topkast.dense_state_dict(model, "all").items():
        assert torch.equal(value, theta[key])
    # A weight that was outside B before has no optimizer state.
    assert all(state["exp_avg"].isfinite().all() for state in optimizer.state.values())


def test_bad_state_dicts_change_nothing() -> None:
    model = topkast.sparsify(CASES["tied"].model(), 0.5, min_size=1)
    before = copy.deepcopy(model.state_dict())
    good = topkast.dense_state_dict(model, "all")
    bad: list[tuple[dict[str, Any], str]] = [
        ({**good, "x": torch.zeros(1)}, "unexpected: x"),
        ({k: v for k, v in good.items() if k != "first.bias"}, "missing: first.bias"),
        ({**good, "between.weight": torch.zeros(2)}, "between.weight: shape"),
        ({**good, "first.bias": torch.zeros(2), "second.bias": None}, "second.bias: a NoneType"),
        ({**good, "between.weight": good["between.weight"] / 0}, "NaN or infinite"),
        ({**good, "second.weight": good["second.weight"] + 1}, "tied"),
    ]
    for state, message in bad:
        with pytest.raises(topkast.CheckpointError, match=message):
            topkast.load_dense_state_dict(model, {k: v * 2 if k == "first.bias" else v for k, v in state.items()})
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    topkast.load_dense_state_dict(model, {"first.bias": good["first.bias"] + 1, "x": torch.zeros(1)}, strict=False)
    assert torch.equal(model.first.bias, before["first.bias"] + 1)
    with pytest.raises(topkast.ConfigError, match="values='dense'"):
        topkast.dense_state_dict(model, "dense")


def test_versions_of_modules_travel() -> None:
    """A module reads what it saved by the version it wrote beside it, as torch's own batch norm does."""

    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
            assert local_metadata.get("version") == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    model = topkast.sparsify(nn.Sequential(Versioned(8, 8), nn.Linear(8, 4)), min_size=1)
    dense = topkast.dense_state_dict(model, values="all")
    nn.Sequential(Versioned(8, 8), nn.Linear(8, 4)).load_state_dict(dense)
    topkast.load_dense_state_dict(model, dense)
    topkast.load_dense_state_dict(model, dict(dense))


class SavesItself(nn.Linear):
    """As the linear layers of torch_geometric do: its state is saved and loaded by code that reads ``weight``."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if prefix + "weight" not in state_dict:
            rest[2].append(prefix + "weight")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_a_layer_with_state_dict_code_of_its_own() -> None:
    """Looking at the state chooses no sets and is no read; it holds nothing twice."""
    torch.manual_seed(0)
    dense = nn.Sequential(SavesItself(12, 16), nn.ReLU(), SavesItself(16, 4))
    model = topkast.compile(copy.deepcopy(dense), 0.8, 0.5, min_size=1, refresh_every=1, backend="aot_eager")
    shapes = {name: site.original.shape for name, site in sites(model).items()}
    assert {key: v.shape for key, v in model.state_dict().items() if key.endswith("weight")} == shapes
    theta = topkast.dense_state_dict(model, "all")
    assert list(theta) == list(dense.state_dict())
    assert all(torch.equal(theta[key], value) for key, value in dense.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model(torch.randn(3, 12)).square().sum().backward()
    optimizer.step()
    before = topkast.masks(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    after = topkast.masks(model)
    assert all(torch.equal(one, two) for name in before for one, two in zip(before[name], after[name], strict=True))
    assert [row["unfused"] for row in topkast.report(model).sites] == [[], []]
    twin = topkast.sparsify(copy.deepcopy(dense), 0.8, 0.5, min_size=1)
    twin.load_state_dict(state)
    assert torch.equal(_output(twin, (torch.ones(2, 12),)), _output(copy.deepcopy(model), (torch.ones(2, 12),)))
    topkast.load_dense_state_dict(twin, theta)
    assert all(torch.equal(topkast.dense_state_dict(twin, "all")[key], value) for key, value in theta.items())
