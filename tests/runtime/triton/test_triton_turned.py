"""A's index by columns: what it holds, where it lies, and that no graph reads one that belongs to other sets."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.state.model import sites
from topkast.runtime.triton import products
from topkast.tests.runtime.native.test_native import sets
from topkast.tests.support.interpreted import INTERPRETED

pytestmark = INTERPRETED


def by_columns(index: Index, geometry: Geometry) -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = [[] for _ in range(geometry.grid[1])]
    for row, (begin, end) in enumerate(zip(index.row_ptr.tolist(), index.row_fwd.tolist(), strict=False)):
        for slot in range(begin, end):
            found[int(index.cols[slot])].append((slot, row))
    return found


def held(turned: torch.Tensor, geometry: Geometry) -> list[list[tuple[int, int]]]:
    begins, ends, slots, rows = (one.tolist() for one in products._turned_lists(turned, geometry))
    return [list(zip(slots[a:b], rows[a:b], strict=True)) for a, b in zip(begins, ends, strict=True)]


@pytest.mark.parametrize("grid", [(3, 5), (300, 2), (1, 1)], ids=str)
def test_it_holds_a_by_columns(grid: tuple[int, int]) -> None:
    geometry = Geometry((16 * grid[0], 16 * grid[1]), (0, 1), 1, (16, 16))
    index = sets(geometry, 0.4, 0.7, 3)
    count = int((index.row_fwd - index.row_ptr[:-1]).sum())
    turned = torch.full((products.turned_size(geometry, count),), -1, dtype=torch.int32)
    products.renew_turned(turned, index, geometry)
    assert held(turned, geometry) == by_columns(index, geometry)
    dy, values = torch.randn(5, geometry.rows), torch.randn(index.cols.numel() * 256)
    taken = products.spmm_t(dy, values, index, geometry, (), turned)
    assert torch.equal(taken, products.spmm_t(dy, values, index, geometry))


def trained(monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[nn.Module, torch.Tensor]:
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    topkast.sparsify(model, 0.6, 0.4, block=(16, 16), min_size=1, **options)
    return model, torch.randn(8, 64)


def test_addresses_stay_over_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph that captured the products reads the new sets: everything that they read stays where it is."""
    model, _ = trained(monkeypatch)
    (site,) = sites(model).values()
    places, contents = set(), []
    for seed in range(4):
        torch.manual_seed(seed)
        site.load_theta(torch.randn(48, 64))
        site.refresh()
        tensors = (site.turned, *site.index, site.original)
        places.add(tuple(tensor.data_ptr() for tensor in tensors))
        contents.append(held(site.turned, site.geometry))
        assert contents[-1] == by_columns(site.index, site.geometry)
    assert len(places) == 1 and contents[0] != contents[1]
    assert site.turned._dynamo_static_input_type == "unguarded"  # a replay does not copy it


@pytest.mark.parametrize(
    "options",
    [
        {"fwd": 0.9, "method": "gmp", "stop_exploring_after": 4},
        {"fwd": 0.9, "bwd": 0.3, "fwd_start": 0.5, "fwd_reached_after": 4},
    ],
    ids=["gmp", "falling density"],
)
def test_it_has_room_for_the_densest_a(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A is larger at the start than at the end."""
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")
    model = nn.Sequential(nn.Linear(64, 48))
    topkast.sparsify(model, block=(16, 16), balanced=False, min_size=1, refresh_every=1, **options)
    (site,) = sites(model).values()
    for step in range(5):
        site.count_step(step)
        site.refresh()
        assert site.turned.numel() == products.turned_size(site.geometry, site.most_units_in_a)
        assert held(site.turned, site.geometry) == by_columns(site.index, site.geometry)
        assert sum(map(len, held(site.turned, site.geometry))) == site.units_in_a


def test_a_graph_takes_it_only_with_its_own_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """``functional_call`` puts other columns in the place of a site's; the gradient follows these."""
    model, x = trained(monkeypatch)
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(str(module.graph))
        return topkast_aot_eager(module, inputs)

    def gradient(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        def run(x: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, tensors, (x,))

        inputs = x.clone().requires_grad_()
        torch.compile(run, backend=backend)(inputs).sum().backward()
        return inputs.grad  # type: ignore[return-value]

    own = gradient({})
    assert "turned" in graphs[-1]
    torch.testing.assert_close(own, torch.ones(8, 48) @ model[0].weight)
    other, _ = trained(monkeypatch)
    (source,) = sites(other).values()
    source.load_theta(torch.randn(48, 64))
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    found = gradient({name: tensor.detach() for name, tensor in tensors.items()})
    assert "turned" not in graphs[-1]
    torch.testing.assert_close(found, torch.ones(8, 48) @ other[0].weight)


@pytest.mark.parametrize("method, count", [("topkast", 1), ("rigl", 2)])
def test_a_method_that_sees_gradients_takes_no_graph_of_another(method: str, count: int) -> None:
    """In a graph whose products Inductor launches nobody sees a dense gradient."""
    compiled: list[int] = []

    def backend(module: torch.fx.GraphModule, _: object) -> object:
        compiled.append(1)
        return module.forward

    def model(**options: object) -> nn.Module:
        one = nn.Sequential(nn.Linear(64, 64))
        topkast.sparsify(one, 0.9, **options, min_size=1)
        return one

    torch._dynamo.reset()
    run = torch.compile(lambda one, x: one(x), backend=backend)
    run(model(bwd=0.9), torch.randn(2, 64))
    run(model(method=method, bwd=None if method == "rigl" else 0.9), torch.randn(2, 64))
    assert len(compiled) == count


@pytest.mark.long
def test_a_graph_launches_what_operators_compute() -> None:
    """Compiled for a GPU, in the emulator and in a process without Triton's interpreter."""
    command = [sys.executable, "-m", "topkast.tests.support.ptx.launched", "90"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("right\n"), done.stderr[-3000:]
