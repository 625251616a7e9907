"""tools/gpu/launches: the code that Inductor generates for a GPU launches our kernels, without an operator of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from topkast.tests.support.interpreted import INTERPRETED
from topkast.tools.common.places import ROOT
from topkast.tools.common.results import read


@pytest.mark.long
@INTERPRETED[0]
def test_inductor_launches_the_kernels(tmp_path: Path) -> None:
    """In a process without Triton's interpreter. The stored counts, which the page shows, are what is found."""
    command = [sys.executable, "-m", "topkast.tools.gpu.launches", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu-launches.json").read_text())["rows"]
    for row in rows:
        before, after = row["operators"], row["launched by Inductor"]
        assert before["operators of ours"] == 3 * row["sites"]
        assert after["operators of ours"] == after["launches beside them for products"] == 0
        assert after["by name"] == {"spmm_kernel": 2 * row["sites"], "sddmm_kernel": row["sites"]}
    assert rows == read("gpu-launches")["rows"]


def test_the_page_shows_the_stored_counts_and_estimates() -> None:
    pytest.importorskip("triton")
    from topkast.tools.gpu.launches import shared_sums
    from topkast.tools.gpu.launches.__main__ import markdown

    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert markdown(read("gpu-launches")["rows"]) in page
    stored = read("gpu-shared-sums")
    assert shared_sums.estimates(stored["compiled"]) == stored["estimates"]
    assert shared_sums.markdown(stored["estimates"]) in page


@INTERPRETED[0]
@INTERPRETED[1]
def test_the_page_shows_the_launches_of_a_refresh() -> None:
    """What is stored for our kernels is counted again, as it does not depend on the content of a tensor."""
    from topkast.tools.gpu.launches import refreshes

    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    stored = read("gpu-refresh")
    assert refreshes.estimates(stored["moved"]) == stored["estimates"]
    assert all(table in page for table in refreshes.markdown(stored["counts"], stored["estimates"]))
    for block, row in zip(refreshes.BLOCKS, stored["counts"], strict=True):
        found = refreshes.refresh(row["width"], row["width"], block, kernels=True)
        assert row["kernels"] == {"launches": len(found.launches), "ours": found.ours, "reads": found.reads}
        assert found.reads == 0 < row["plain"]["reads"]
