"""Models whose code is entered in other ways than by calling them: what is sparse runs compiled all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.state.model import sites
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, adamw, plain

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"  # Dynamo looks at it
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Coder(nn.Module):
    """Has an encoder and a decoder, which a program may call by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 12), Block(), Block())
        self.decoder = nn.Linear(12, 16)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))

    def training_step(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))

    def one_by_one(self, x: Tensor) -> Tensor:
        for part in self.encoder:
            x = part(x)
        return self.decoder(x)

    def own(self, x: Tensor) -> Tensor:
        return self(x)


class Entered(nn.Module):
    """For the lockstep, which calls: a model that is entered by a method."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.model, self.method = Coder(), method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.model, self.method)(x)


METHODS = ["training_step", "forward", "one_by_one", "own"]


@pytest.mark.parametrize("method", METHODS)
def test_methods_run_compiled_and_equal_the_oracle(method: str) -> None:
    names = tuple(f"model.{name}" for name, p in Coder().named_parameters() if p.ndim == 2)
    case = Case(method, lambda: Entered(method), (9, 16), names)
    trio = Trio(case, {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager"}, adamw)
    ours = trio.ours.model
    ours._compiled_call_impl = None  # so that its code, which calls the method, is a program's
    assert trio.run(plain) == 5
    for name, site in sites(ours).items():
        assert {product for product, *_ in site.ran} <= {"forward", "input gradient", "weight gradient"}, name


def small(model: nn.Module, **options: Any) -> nn.Module:
    return topkast.compile(model, **{"min_size": 1, "backend": "aot_eager", "seed": 0} | options)


def ran(model: nn.Module) -> set[str]:
    return {product for site in sites(model).values() for product, *_ in site.ran}


def test_inside_of_a_run_a_part_belongs_to_the_model_s_graph() -> None:
    torch._dynamo.utils.counters.clear()
    model = small(Coder(), fullgraph=True)
    model(torch.randn(4, 16)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_broken_graph_is_no_reason_to_compile_parts_apart() -> None:
    class Broken(Coder):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.encode(x)
            torch._dynamo.graph_break()
            return self.decoder(hidden)

    model = small(Broken())
    model(torch.randn(4, 16)).sum().backward()
    assert ran(model) == {"forward", "input gradient", "weight gradient"}
    entries: list[Any] = [part._compiled_call_impl for part in model.modules() if part._compiled_call_impl is not None]
    assert len(entries) == 10 and [entry.module for entry in entries if "without_hooks" in vars(entry)] == [model]


def test_hooks_of_a_part_are_run() -> None:
    """Outside of the part's graph, and within the model's."""
    model, seen = small(Coder()), []
    model.decoder.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    x = torch.randn(4, 16)
    for run in (model.training_step, model):
        run(x).sum().backward()
    assert len(seen) == 2 and ran(model) == {"forward", "input gradient", "weight gradient"}


def test_evaluation_by_a_method() -> None:
    model = small(Coder()).eval()
    with torch.no_grad():
        assert torch.equal(model.training_step(torch.ones(1, 16)), model(torch.ones(1, 16)))
    assert ran(model) == {"forward"}


def test_under_observation_parts_are_eager() -> None:
    """A transform, and a mode that looks at operators, see what they see of an eager model."""
    from torch.utils.flop_counter import FlopCounterMode

    model = small(Coder())
    x = torch.randn(3, 16)
    vmapped = torch.func.vmap(model.encode)(x)
    assert torch.equal(vmapped, torch.func.vmap(model.encoder)(x)) and ran(model) == {"read"}
    _, tangent = torch.func.jvp(model.encode, (x,), (torch.ones_like(x),))
    assert tangent.shape == (3, 12)
    counted = []
    for one in (model, topkast.densify(model)):
        with FlopCounterMode(display=False) as counter:
            one.encode(x)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0 and ran(model) == {"read"}


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, topkast.densify]


@pytest.mark.long
@pytest.mark.parametrize("make", COPIES)
def test_no_entry_of_a_copy_leads_to_the_original(make: Callable[[nn.Module], nn.Module]) -> None:
    model = small(Coder())
    x = torch.randn(4, 16)
    model.training_step(x).sum().backward()
    before = [dict(site.ran) for site in sites(model).values()]
    twin = make(model)
    assert all(part._compiled_call_impl is None for part in twin.modules())
    twin.training_step(x).sum().backward()
    assert [dict(site.ran) for site in sites(model).values()] == before


def test_a_part_is_copied_alone() -> None:
    model = small(Coder())
    part = copy.deepcopy(model.encoder)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    assert not part(torch.randn(2, 16)).any() and model.encoder(torch.randn(2, 16)).any()


ROOTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 8),
    "sequential": lambda: nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)),
    "layer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
}


@pytest.mark.long
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", ROOTS)
def test_roots_of_torch_s_own_classes(name: str, hooked: bool) -> None:
    """torch 2.11 skips frames of their files."""
    model, seen = small(ROOTS[name]()), []
    if hooked:
        model.register_forward_hook(lambda module, args, output: seen.append(1))
    model(torch.randn(3, 5, 16)).sum().backward()
    assert not any(row["unfused"] for row in topkast.report(model).sites) and "weight gradient" in ran(model)
    assert len(seen) == hooked
