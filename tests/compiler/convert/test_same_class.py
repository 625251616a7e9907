"""Many models of one class in a process: each runs compiled; and modules of one class do not disturb each other."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils import parametrize

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.runtime.state.model import sites

MANY = 10  # Dynamo's limit is 8


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.into, self.out, self.dropout = nn.Linear(16, 24), nn.Linear(24, 8), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(torch.relu(self.into(x))))


@pytest.fixture(autouse=True)
def count_from_zero() -> None:
    counters.clear()


def converted(model: nn.Module, fwd: float = 0.9, bwd: float | None = None, **options: Any) -> nn.Module:
    return topkast.compile(model, fwd, bwd, **{"min_size": 1, "backend": "aot_eager", **options})


def fused(model: nn.Module, inputs: int = 16) -> bool:
    """Train a step, and say whether it ran compiled."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [site.ran.copy() for site in sites(model).values()]
    model(torch.randn(4, inputs)).square().mean().backward()
    optimizer.step()
    ran = [site.ran - old for site, old in zip(sites(model).values(), before, strict=True)]
    return all({product for product, *_ in one} >= {"forward", "weight gradient"} for one in ran) and not any(
        row["unfused"] for row in topkast.report(model).sites
    )


def by_torch(model: nn.Module) -> nn.Module:
    topkast.sparsify(model, min_size=1)
    model.compile(backend=topkast_aot_eager)
    return model


@pytest.mark.long
@pytest.mark.parametrize("make", [lambda: converted(Net()), lambda: by_torch(Net())])
def test_models_of_one_class_are_compiled_once(make: Callable[[], nn.Module]) -> None:
    models = [make() for _ in range(MANY)]
    assert all(fused(model) for _ in range(2) for model in models), "in turn"
    assert counters["stats"]["unique_graphs"] == 1


def test_models_that_are_let_go() -> None:
    assert all(fused(converted(Net())) for _ in range(MANY))
    assert counters["stats"]["unique_graphs"] == 1


ACTIVATIONS = [nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.Softplus, nn.Mish, nn.Hardtanh, nn.SELU]
KINDS: dict[str, Callable[[int], nn.Module]] = {
    "sparsity": lambda i: converted(Net(), 0.4 + i / 24, 0.2),
    "dropout": lambda i: converted(Net(i / 24)),
    "layers": lambda i: converted(nn.Sequential(nn.Linear(16, 24), ACTIVATIONS[i](), nn.Linear(24, 8))),
    "hook": lambda i: hooked(converted(Net())),
}


def hooked(model: Any) -> nn.Module:
    model.calls = 0

    def count(module: Any, *_: Any) -> None:
        module.calls += 1

    model.register_forward_hook(count)
    return model


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_models_that_differ(name: str) -> None:
    models = [KINDS[name](i) for i in range(MANY)]
    assert [fused(model) for model in models] == [True] * MANY
    assert all(fused(model) for model in models[::-1])


def test_a_hook_that_counts_is_no_reason_to_compile_anew() -> None:
    model = hooked(converted(Net()))
    assert all(fused(model) for _ in range(MANY))
    assert model.calls == MANY and counters["stats"]["unique_graphs"] == 1


def test_copies_that_are_compiled() -> None:
    model = converted(Net())
    assert fused(model)
    twins = [copy.deepcopy(model) for _ in range(MANY)]
    for twin in twins:
        twin.compile(backend=topkast_aot_eager)
    assert all(fused(twin) for _ in range(2) for twin in twins)
    assert counters["stats"]["unique_graphs"] == 2, "the copies share one graph"


class Twice(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


def test_classes_are_shared_by_what_is_sparse() -> None:
    model: Any = converted(nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 24), nn.LSTM(8, 8), nn.LSTM(8, 12)]))
    first, second, third, fourth = model
    assert type(first) is type(second) and type(third) is type(fourth)
    assert type(first) is not nn.Linear and isinstance(first, nn.Linear)
    alone: Any = converted(nn.ModuleList([nn.Linear(16, 16), nn.LSTM(8, 8)]), exclude="*_hh_*")
    assert type(alone[0]) is type(first) and type(alone[1]) is not type(third)
    dense: Any = topkast.densify(model)
    assert [type(module) for module in dense] == [nn.Linear, nn.Linear, nn.LSTM, nn.LSTM]
    assert type(copy.copy(first)) is type(first)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_foreign_parametrization_is_one_module_s_own(when: str) -> None:
    model, twin = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), nn.Linear(16, 16)
    biases = [2 * model[0].bias.detach(), model[1].bias.detach().clone()]
    if when == "before":
        parametrize.register_parametrization(model[0], "bias", Twice())
    converted(model, backend="eager")
    converted(twin, backend="eager")
    if when == "after":
        parametrize.register_parametrization(model[0], "bias", Twice())
    zero = torch.zeros(1, 16)
    for part, bias in zip(model, biases, strict=True):
        assert torch.equal(part.bias, bias) and torch.equal(part(zero)[0], bias)
    assert isinstance(twin.bias, nn.Parameter) and isinstance(model[1].bias, nn.Parameter)
    dense = topkast.densify(model)
    assert torch.equal(dense(zero), model(zero)) and parametrize.is_parametrized(dense[0], "bias")
    again = copy.deepcopy(model)
    assert torch.equal(again(zero), model(zero))
    parametrize.remove_parametrizations(model[0], "bias")
    assert isinstance(model[0].bias, nn.Parameter) and torch.equal(model[0].bias, biases[0])
    if when == "after":  # torch's own class, made before, is the copy's too
        assert torch.equal(again(zero), model(zero)), "the copy has its parametrization still"
    model[1].bias = None
    assert model[1].bias is None and twin.bias is not None


def test_a_weight_that_is_replaced_is_one_module_s_own() -> None:
    first, second = (converted(nn.Linear(16, 16), backend="eager") for _ in range(2))
    shared, theta = type(first), second.weight
    first.weight = nn.Parameter(torch.ones(16, 16))
    assert type(first) is nn.Linear and torch.equal(first.weight, torch.ones(16, 16))
    assert type(second) is shared and torch.equal(second.weight, theta)
    assert topkast.masks(first) == {} and not any("sparse_state" in key for key in first.state_dict())


def test_what_is_defined_in_a_function_can_be_freed() -> None:
    def run(backend: str) -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        class Local(nn.Linear):
            pass

        model = converted(nn.Sequential(Local(16, 16)), backend=backend)
        assert fused(model) == (backend != "eager")
        return weakref.ref(Local), weakref.ref(model[0])

    for backend in ("eager", "aot_eager"):
        kind, module = run(backend)
        torch._dynamo.reset()  # its caches hold on to classes
        gc.collect()
        assert module() is None and kind() is None
    kept = weakref.ref(converted(nn.Linear(16, 16), backend="eager"))
    gc.collect()
    assert kept() is None, "no class keeps the first of its modules"
