"""Which CUDA kernel runs: what fits, what the planner weighs on a GPU, and whole training steps in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from topkast.runtime import triton as package
from topkast.runtime.kernels.candidates import candidates
from topkast.runtime.layout import Geometry
from topkast.runtime.planner import plan as planner
from topkast.tests.runtime.native.test_native import check_training
from topkast.tests.support.interpreted import INTERPRETED

pytestmark = INTERPRETED


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, blocks, odd = (Geometry((256, 256), (0, 1), 1, block) for block in [(1, 1), (32, 64), (32, 24)])
    x = on_cuda(4, 256)
    assert candidates("spmm", x, blocks) == ["triton", "transient", "reference"]
    assert candidates("sddmm", x, unit) == ["csr", "transient", "reference"]
    for geometry in (odd, Geometry((256, 256), (0, 1), 1, (256, 16))):
        assert candidates("sddmm", x, geometry) == ["transient", "reference"]
    assert candidates("conv", x, unit) == candidates("conv", x, blocks) == ["transient", "reference"]
    for geometry in (blocks, unit):
        assert candidates("spmm", on_cuda(4, 256, dtype=torch.float64), geometry) == ["transient", "reference"]
    assert candidates("spmm", on_cuda(3, 4, 64), Geometry((3, 24, 64), (0, 1, 2), 2, (16, 16)))[0] == "transient"
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    for geometry in (blocks, unit):
        assert not set(package.NAMES) & set(candidates("spmm", torch.ones(4, 256), geometry))
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")
    assert candidates("spmm", torch.ones(4, 256), blocks)[0] == "triton"


def test_single_weights_are_tried_where_few_are_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A product reads A, the weight gradient B: where that is over a hundredth of the weight nothing is measured."""
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    weighed: list[tuple[str, list[str]]] = []

    def measured(problem: planner.Problem, names: list[str]) -> dict[str, float]:
        weighed.append((problem.product, names))
        return dict.fromkeys(names, 2.0) | {"csr": 1.0}

    monkeypatch.setattr(planner, "measure", measured)
    geometry, layouts = Geometry((1000, 64), (0, 1), 1, (1, 1)), (((8, 64), (64, 1)),)

    def chosen(product: str, n_fwd: int, n_bwd: int) -> str:
        dtype, device = torch.bfloat16, torch.device("cuda")
        return planner.choose(planner.Problem(product, layouts, dtype, geometry, n_fwd, n_bwd, 1, device))

    assert chosen("spmm", 640, 1280) == "csr" and chosen("sddmm", 640, 1280) == "transient"
    assert chosen("spmm_t", 641, 1280) == "transient" and chosen("sddmm", 320, 640) == "csr"
    assert weighed == [("spmm", ["csr", "transient"]), ("sddmm", ["csr", "transient"])]
    monkeypatch.setenv("TOPKAST_KERNEL", "first")
    assert chosen("spmm", 640, 1280) == "csr" and chosen("spmm", 6400, 12800) == "transient"
    monkeypatch.setenv("TOPKAST_KERNEL", "csr")
    assert chosen("spmm", 6400, 12800) == "csr"


def test_the_planner_weighs_them_on_their_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    calls: list[tuple[torch.device, list[str]]] = []

    def measured(problem: planner.Problem, names: list[str]) -> dict[str, float]:
        calls.append((problem.device, names))
        return dict.fromkeys(names, 2.0) | {"transient": 1.0}

    monkeypatch.setattr(planner, "measure", measured)
    device, geometry = torch.device("cuda"), Geometry((256, 64), (0, 1), 1, (16, 16))
    layouts = (((8, 64), (64, 1)),)
    problem = planner.Problem("spmm", layouts, torch.bfloat16, geometry, 8, 16, 1, device)
    assert planner.choose(problem) == "transient" and calls == [(device, ["triton", "transient"])]
    (entry,) = planner.measured(geometry, 8, 16)
    assert entry["seconds"] == {"triton": 2.0, "transient": 1.0}
    on_cpu = planner.Problem("spmm", layouts, torch.bfloat16, geometry, 8, 16, 1)
    assert problem.key != on_cpu.key


@pytest.mark.long
@pytest.mark.parametrize("name, kernel, block", [
    ("mlp", "triton", (16, 16)), ("experts", "transient", (1, 1)),
    ("cnn", "transient", (4, 1)), ("hf_conv1d", "triton", (16, 16)), ("mlp", "csr", (1, 1)),
])  # fmt: skip
def test_training_takes_the_kernels(
    name: str, kernel: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wiring, sets and index of the refreshes included: as on plain dense products, which equal the oracle.

    Sets chosen row by row are the same kernels with more programs, which the interpreter runs one after another.
    """
    check_training(name, kernel, "reference", 0.7, 0.4, monkeypatch, block=block, balanced=False)
