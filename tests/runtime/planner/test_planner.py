"""The planner measures, remembers, can be overruled, and tells the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime import native
from topkast.runtime.layout import Geometry
from topkast.runtime.planner import cache as planner_cache
from topkast.runtime.planner import plan as planner
from topkast.runtime.reference.products import ConvArgs

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")
PROBLEM = planner.Problem(
    "spmm", (((16, 64), (64, 1)),), torch.float32, Geometry((96, 64), (0, 1), 1, (4, 1)), 150, 300, 1
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    return tmp_path / "times.json"


def another_process() -> None:
    """Forget what this process read and used, as a new process does."""
    planner_cache._read_files.clear()
    planner_cache._used.clear()
    planner_cache._loaded.clear()


@pytest.mark.parametrize("product, second", [("spmm", None), ("spmm_t", None), ("sddmm", ((16, 64), (64, 1)))])
def test_measures_every_candidate(product: str, second: planner.Layout | None) -> None:
    operands = (((16, 96 if product != "spmm" else 64), (1, 16)), *([second] if second else []))
    problem = planner.Problem(product, operands, torch.float32, PROBLEM.geometry, 150, 300, 1)
    found = planner.measure(problem, ["native", "dense"], 0.01)
    assert set(found) == {"native", "dense"} and all(0 < seconds < 1 for seconds in found.values())


@pytest.mark.parametrize("product", ["conv", "conv_input_grad", "conv_weight_grad"])
def test_measures_convolutions(product: str) -> None:
    geometry, conv = (
        Geometry((16, 6, 3, 3), (0, 1, 2, 3), 1, (4, 1)),
        ConvArgs([2, 2], [1, 1], [1, 1], False, [0, 0], 1),
    )
    x, dy = ((8, 6, 9, 7), (378, 1, 42, 6)), ((8, 16, 5, 4), (320, 20, 4, 1))
    operands = (x,) if product == "conv" else (dy, x)
    problem = planner.Problem(product, operands, torch.float32, geometry, 20, 40, 1, conv=conv)
    assert problem.key != dataclasses.replace(problem, conv=conv._replace(padding=[0, 0])).key
    found = planner.measure(problem, ["native", "dense"], 0.01)
    assert set(found) == {"native", "dense"} and all(0 < seconds < 1 for seconds in found.values())


def test_the_report_names_the_images_of_a_convolution() -> None:
    model = topkast.compile(nn.Conv2d(6, 16, 3), 0.9, 0.8, backend="aot_eager", min_size=20, include="weight")
    model(torch.randn(8, 6, 9, 7)).sum().backward()
    report = topkast.report(model)
    shapes = {entry["product"]: entry["shape"] for entry in report.sites[0]["measured"]}
    assert shapes == {"conv": [8, 6, 9, 7], "conv_weight_grad": [8, 16, 7, 5]}
    assert "conv of 8×6×9×7: " in str(report.details())


def test_takes_the_faster_and_remembers_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measured(problem: planner.Problem, names: list[str]) -> dict[str, float]:
        calls.append(names)
        return {"native": 2.0, "dense": 1.0}

    monkeypatch.setattr(planner, "measure", measured)
    monkeypatch.setattr(planner, "bound", lambda problem: 3.0)
    assert planner.choose(PROBLEM) == "dense" == planner.choose(PROBLEM)
    assert calls == [["native", "dense"]]
    another_process()
    assert planner.choose(PROBLEM) == "dense" and len(calls) == 1
    stored = json.loads(cache.read_text())[planner_cache.machine()]
    assert stored[PROBLEM.key]["seconds"] == {"native": 2.0, "dense": 1.0}


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_broken_cache_is_measured_again(cache: Path, content: str) -> None:
    cache.write_text(content)
    another_process()
    assert planner.choose(PROBLEM) in ("native", "dense")
    assert planner_cache.machine() in json.loads(cache.read_text())


@pytest.mark.parametrize("setting, chosen", [("first", "native"), ("dense", "dense"), ("native", "native")])
def test_can_be_overruled(setting: str, chosen: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", setting)
    assert planner.choose(PROBLEM) == chosen and not cache.exists()


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", "fastest")
    with pytest.raises(
        topkast.ConfigError, match="TOPKAST_KERNEL='fastest': must be one of measure, first, triton, csr, bf16, native"
    ):
        planner.choose(PROBLEM)


def test_the_report_shows_what_was_measured() -> None:
    model = topkast.compile(nn.Linear(64, 96), 0.9, 0.8, backend="aot_eager", min_size=20)
    model(torch.randn(16, 64)).sum().backward()
    report = topkast.report(model)
    (row,) = report.sites
    assert {entry["product"] for entry in row["measured"]} == {"spmm", "sddmm"}
    for entry in row["measured"]:
        assert entry["chosen"] == min(entry["seconds"], key=entry["seconds"].get)
        assert entry["shape"][0] == 16 and set(entry["seconds"]) == {"native", "dense"}
    assert "is faster here" in str(report.details())
    json.dumps(report.to_dict())


def test_one_plan_serves_a_class_of_symbolic_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(rows: int, dynamic: bool | None) -> set[str]:
        keys: set[str] = set()
        monkeypatch.setattr(planner, "choose", lambda problem: keys.add(problem.key) or "native")
        torch._dynamo.reset()
        model = topkast.compile(nn.Linear(64, 96), 0.9, 0.8, backend="aot_eager", min_size=20, dynamic=dynamic)
        model(torch.randn(rows, 64)).sum().backward()
        return keys

    assert planned(20, True) == planned(27, True) == planned(32, None) != planned(27, None)


def test_every_product_is_measured_with_the_size_of_its_own_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights of one shape with the same B and another A; and a weight whose rows are cut into two parts."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.whole = (nn.Linear(64, 96, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.whole.weight.split([32, 64])
            return self.b(self.a(x)[:, :64]).sum() + (x @ first.t()).sum() + (x @ second.t()).square().sum()

    seen: set[tuple[int, int, int]] = set()
    choose = planner.choose

    def record(problem: planner.Problem) -> str:
        seen.add((problem.geometry.rows, problem.n_fwd, problem.n_bwd))
        return choose(problem)

    monkeypatch.setattr(planner, "choose", record)
    shares = {"a.weight": (0.75, 0.5), "b.weight": (0.5, 0.5), "whole.weight": (0.75, 0.5)}
    model = topkast.compile(Cut(), distribution=shares, backend="aot_eager", min_size=20)
    model(torch.randn(16, 64)).backward()
    parts = {(32, 32 * 16, 32 * 64), (64, 64 * 16, 64 * 64)}  # the number of B's blocks in a part is not known: any
    assert seen == {(96, 96 * 16, 96 * 32), (96, 96 * 32, 96 * 32)} | {(r, f, min(b, 96 * 32)) for r, f, b in parts}
