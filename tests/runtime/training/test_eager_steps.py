"""A training step of a compiled model in which nothing ran compiled: said once, with the reason; and no other is."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.compiler import backend as ours

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"  # Dynamo looks at it
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.weight = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.net(x), self.weight)


class Disabled(Net):
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Broken(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net(x)
        torch._dynamo.graph_break()
        return F.linear(hidden, self.weight)


def small(model: nn.Module, **options: Any) -> nn.Module:
    return topkast.compile(model, **{"min_size": 1, "backend": "aot_eager", "seed": 0} | options)


def train(model: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> list[str]:
    """What is warned of in two steps."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            (run or model)(torch.randn(4, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [str(warning.message) for warning in seen if "topkast" in str(warning.message)]


def limited(model: nn.Module) -> nn.Module:
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        for size in range(20, 28):
            model(torch.randn(size, 16))
    return model


def failing(*_: Any) -> Any:
    raise ArithmeticError("a pass that is wrong")


def check(said: list[str], why: str) -> None:
    (text,) = said
    assert why in text and "backend='aot_eager'" in text


def told(model: nn.Module, said: list[str], why: str) -> None:
    check(said, why)
    assert any(why in warning and "eagerly" in warning for warning in topkast.report(model).warnings)
    assert why.split()[0] in str(topkast.report(model))


def test_a_copy_that_is_not_compiled() -> None:
    model = small(Net())
    twin = copy.deepcopy(model)
    told(twin, train(twin), "it is a copy")
    assert not train(model)


def test_disabled_by_its_author() -> None:
    model = small(Disabled())
    told(model, train(model), "torch.compiler.disable")


def test_weights_read_by_other_code() -> None:
    model = small(nn.Linear(16, 16))
    told(model, train(model, lambda x: F.linear(x, model.weight)), "neither the model nor a module of it was called")


@pytest.mark.long
def test_the_limit_of_recompilations() -> None:
    model = limited(small(Net()))
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        told(model, train(model), "recompile_limit")


def test_an_error_that_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(Net())
    monkeypatch.setattr(ours, "_aot_eager", failing)
    with torch._dynamo.config.patch(suppress_errors=True):
        told(model, train(model), "ArithmeticError: a pass that is wrong")


@pytest.mark.parametrize("how", ["stance", "config"])
def test_switched_off(how: str) -> None:
    model = small(Net())
    off = torch.compiler.set_stance("force_eager") if how == "stance" else torch._dynamo.config.patch(disable=True)
    with off:
        told(model, train(model), "switched off")


def test_a_loop_without_an_optimizer() -> None:
    model = small(Disabled())
    model(torch.randn(4, 16)).sum().backward()
    with pytest.warns(UserWarning, match="disable"):
        topkast.step(model, lr=0.1)


def test_it_turns_eager_later() -> None:
    model = small(Net())
    assert not train(model)
    with torch.compiler.set_stance("force_eager"):
        told(model, train(model), "switched off")
        assert not train(model), "once"


def own_copy(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.compile(backend=ours.topkast_aot_eager)
    return twin


QUIET: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "compiled": lambda: (small(Net()), None),
    "eager": lambda: (small(Net(), backend="eager"), None),
    "sparsified": lambda: (topkast.sparsify(Net(), min_size=1), None),
    "compiling forbidden": lambda: (small(Net(), disable=True), None),
    "graph breaks": lambda: (small(Broken()), None),
    "a part by itself": lambda: (model := small(Net()), model.net),
    "its forward": lambda: (model := small(Net()), model.forward),
    "a copy that is compiled": lambda: (own_copy(small(Net())), None),
    "a copy that is not": lambda: (copy.deepcopy(small(Net(), backend="eager")), None),
    "read for a penalty": lambda: (model := small(Net()), lambda x: model(x) + model.weight.abs().sum()),
    "frozen": lambda: (frozen(small(Disabled())), None),
}


def frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.extra = nn.Parameter(torch.ones(16))
    model.register_forward_hook(lambda module, args, output: output * module.extra)
    return model


@pytest.mark.long
@pytest.mark.parametrize("name", QUIET)
def test_no_other_step_is_told(name: str) -> None:
    model, run = QUIET[name]()
    assert train(model, run) == []
    assert not any("eagerly: " in warning for warning in topkast.report(model).warnings)


def test_evaluation_is_no_step() -> None:
    model = small(Net())
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        model(torch.randn(4, 16))
    assert train(model) == []
    with torch.compiler.set_stance("force_eager"):
        model(torch.randn(4, 16))
        torch.func.grad(lambda x: model(x).sum())(torch.randn(4, 16))
    assert train(model) == []


def test_what_is_always_read_eagerly_stands_in_the_report() -> None:
    model = small(Net())
    assert train(model, model.forward) == []
    (text,) = [warning for warning in topkast.report(model).warnings if "eagerly so far" in warning]
    assert "weight" in text and "net.0" not in text


def test_the_record_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(small(Net())._topkast))
    assert again.backend == again.watch.backend == "aot_eager"
