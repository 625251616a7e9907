"""What FSDP2 must not do to a converted model, and what cannot work on a sharded one: an error that says what to do.

One process is enough, which is a group of one rank. Errors that need several ranks are in test_sharded_functions.py,
those of other tools in tests/support/refusals.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import topkast
from topkast.runtime.methods import METHODS
from topkast.tests.support.processes.sharded import OPTIMIZERS, Net, Run, batches, build, mesh_of, sharded

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
RUN = Run("sgd")


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place: Path = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Tied(nn.Module):
    """Two layers that share their weight, and a layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.last = (nn.Linear(20, 20, bias=False) for _ in range(3))
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def _step(model: nn.Module, x: Tensor) -> None:
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model(x).sum().backward()
    optimizer.step()


def _tied(*parts: str) -> None:
    model = topkast.sparsify(Tied(), min_size=1, mesh=mesh_of(RUN), refresh_every=1)
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    try:
        fully_shard([getattr(model, part) for part in parts], mesh=mesh_of(RUN))
    except topkast.ModelError:
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)
        raise
    fully_shard(model, mesh=mesh_of(RUN))
    _step(model, torch.randn(4, 20))
    assert model.first.sparse_state.weight.churn
    theta = topkast.dense_state_dict(model, values="all", full=True)
    assert torch.equal(theta["first.weight"], theta["last.weight"])


def _sharded_before(convert: Callable[[Any], Any], part: str = "") -> None:
    model = Net()
    fully_shard(model.get_submodule(part), mesh=mesh_of(RUN))
    convert(model)


def _other_dtensor() -> None:
    model = Net()
    whole = distribute_tensor(model.first.weight.detach(), mesh_of(RUN), [Replicate()])
    model.first.weight = nn.Parameter(whole)
    topkast.sparsify(model, min_size=1)


def _cut_by_columns() -> None:
    model = build(RUN, mesh=mesh_of(RUN))
    fully_shard(model, mesh=mesh_of(RUN), shard_placement_fn=lambda p: Shard(p.dim() - 1))
    _step(model, batches()[0][0])


def _values_left_out() -> None:
    model = build(RUN, mesh=mesh_of(RUN))
    fully_shard(model, mesh=mesh_of(RUN), ignored_params={model.first._parameters["weight"]})
    _step(model, batches()[0][0])


class Remembering(topkast.Method):
    """A user's method with a tensor of its own."""

    name = "remembering"
    says = "as topkast."
    uses = ("bwd", "refresh_every")
    largest_first = True

    def start(self, state: topkast.SetState, score: Tensor) -> tuple[Tensor, Tensor]:
        return state.largest(score, state.fwd_per_group), state.largest(score, state.bwd_per_group)

    renew = start

    def saved(self, state: topkast.SetState) -> dict[str, Tensor]:
        return {"seen": torch.zeros(state.geometry.units)}


def _with_state_of_its_own() -> None:
    before = dict(METHODS)
    try:
        topkast.register_method(Remembering)
        sharded(Run(options={"method": "remembering"}))
    finally:
        METHODS.clear()
        METHODS.update(before)


ASKED: dict[str, tuple[Callable[[], Any], str]] = {
    "the first of a tied weight": (
        lambda: _tied("first"),
        "first.weight: a tied weight.*call fully_shard once with all",
    ),
    "the last of a tied weight": (lambda: _tied("last"), "first.weight: a tied weight.*call fully_shard once with all"),
    "sparsify after": (lambda: _sharded_before(topkast.sparsify), "a DTensor; convert the model before it is sharded"),
    "compile after": (lambda: _sharded_before(topkast.compile, "blocks.0"), "a DTensor; convert the model before"),
    "another DTensor": (_other_dtensor, "first.weight: a DTensor; convert the model before it is sharded"),
    "cut by columns": (_cut_by_columns, "fully_shard has cut along their first dimension"),
    "a method with state": (_with_state_of_its_own, "method='remembering': it keeps seen beside the sets"),
    "values left out": (_values_left_out, "its positions are sharded and its values are not"),
    "convert again": (lambda: topkast.sparsify(sharded(RUN)), "already converted"),
    "averaged": (lambda: topkast.averaged(sharded(RUN)), "topkast.averaged needs the whole weight"),
    "topology": (
        lambda: topkast.topology.interchangeable(sharded(RUN), batches()[0][0]),
        "needs the whole weight; topkast.dense_state_dict",
    ),
    "dynamics": (lambda: topkast.Dynamics(sharded(RUN)), "needs the whole weight; topkast.dense_state_dict"),
}


@pytest.mark.parametrize("name", ASKED)
def test_refused(name: str) -> None:
    do, says = ASKED[name]
    with pytest.raises(topkast.ModelError, match=says):
        do()


def test_a_tied_weight_in_one_call_trains() -> None:
    _tied("first", "last")
