"""tools/gpu/predict.py: the model gives what can be reckoned by hand, and the pages show what it gave."""

from __future__ import annotations

import pytest

from topkast.tools.common.places import ROOT
from topkast.tools.common.results import read
from topkast.tools.gpu import predict
from topkast.tools.gpu.predicted_times import MACHINES, Machine, Shape, dense, product

# One multiprocessor, round figures: a program of 10 turns of 1000 operations and 100 bytes.
GPU = Machine("toy", 1000.0, 1e30, (50.0, 50.0), multiprocessors=1, port=1e30, mma=0.5)
FACTS = {"tile": 64, "depth": 64, "registers": 255, "threads": 256, "shared": 200_000, "wgmma": 8,
         "loop": {"operations": 1000, "bytes": 100}}  # fmt: skip


@pytest.mark.parametrize("changed, seconds", [
    ({}, 20.0),  # 10 turns of 100 bytes at 50 bytes a second
    ({"loop": {"operations": 4000, "bytes": 100}}, 40.0),  # 10 turns of 4000 operations at 1000 a second
    ({"loop": {"operations": 4000, "bytes": 100}, "wgmma": 0}, 80.0),
])  # fmt: skip
def test_one_program_takes_the_longer_of_reading_and_computing(changed, seconds) -> None:
    taken = product("spmm", 64, Shape(64, 6400, 64), 0.9, 0.8, FACTS | changed, GPU, 50.0)
    assert taken == pytest.approx(seconds, rel=1e-3)


def test_programs_run_in_waves() -> None:
    """Three programs on one multiprocessor, one at a time for their registers, take three times as long."""
    one, three = (product("spmm", 64, Shape(m, 6400, 64), 0.9, 0.8, FACTS, GPU, 50.0) for m in (64, 192))
    assert three == pytest.approx(3 * one, rel=1e-3)


def test_a_dense_product_takes_what_was_measured() -> None:
    taken = dense(Shape(8192, 8192, 8192), MACHINES["H200"])
    assert 2 * 8192**3 / taken == pytest.approx(790e12, rel=0.01)


def test_the_stored_estimates_are_what_the_model_gives_and_what_the_page_shows() -> None:
    stored = read("gpu-estimates")
    assert predict.tables(stored["compiled"]) == stored["estimates"]
    assert predict.checks(stored["compiled"]) == stored["checks"]
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert predict.markdown(stored["estimates"]) in page
    # By hand came figures above the model's, by a third at most: the page says so.
    for row in stored["checks"]:
        for mine, theirs in zip(row["model"], row["figure"], strict=True):
            assert 0.59 * theirs <= mine <= 1.01 * theirs, row
