"""tools/gpu/gpu.sh at toy sizes, in Triton's interpreter: its parts, their limits, what a failure costs; and the
tuner."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from topkast.runtime.triton import configs, products
from topkast.tests.support.interpreted import INTERPRETED
from topkast.tools.common.places import ROOT

pytestmark = INTERPRETED


@pytest.mark.long
def test_the_gpu_script_dry(tmp_path: Path) -> None:
    """Every part of tools/gpu/gpu.sh, at toy sizes."""
    script = ROOT / "tools" / "gpu" / "gpu.sh"
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script, "--dry", "--out", tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = json.loads((tmp_path / "gpu-dry.json").read_text())["parts"]
    assert set(parts) == {
        *("hardware", "correct", "sanitizer", "products", "single", "steps", "decode", "large", "headline")
    }
    assert all(part["ended"] == "complete" and part["rows"] for part in parts.values())
    _, blocks, single = parts["steps"]["rows"]
    assert set(blocks["kernels"]["weight gradient"]) == {"triton"}
    assert set(single["kernels"]["forward"]) == {"transient"}
    assert any("topkast::" in each["name"] for each in blocks["profile"]) and "profile" in single
    assert {"read", "copy"} <= {name for row in parts["hardware"]["rows"] for name in row}
    assert blocks["parameters, gradient and optimizer / dense"] < 0.7  # the embedding stays dense
    large, background = parts["large"]["rows"]
    assert large["losses"][-1] < large["losses"][0]
    assert background["in the background"] and background["a step that asks and applies / a plain one"] > 0
    assert {row["dtype"] for row in parts["single"]["rows"]} == {"torch.bfloat16", "torch.float32"}
    assert all(set(row["step"]) == {"csr", "transient"} for row in parts["single"]["rows"])
    assert all("triton, GELU apart" in row["ratio"] for row in parts["decode"]["rows"])


def test_the_parts_of_the_gpu_script_have_their_time() -> None:
    """Each has a limit, and the parts of each of the three calls stop before eight minutes."""
    from topkast.tools.gpu import __main__ as gpu

    assert gpu.TOTAL < 480 and {part[3] for part in gpu.PARTS.values()} == {1, 2, 3}
    for call in (1, 2, 3):
        assert 0 < sum(limit for _, _, limit, its in gpu.PARTS.values() if its == call) <= gpu.TOTAL


def test_a_part_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from topkast.tools.gpu import __main__ as gpu

    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "PARTS", {
        "fails": ("math", "sqrt", 20, 1), "hangs": ("test_triton_parts", "hang", 2, 1),
        "works": ("test_triton_parts", "work", 20, 1),
    })  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "test_triton_parts.py").write_text(
        "import time\n"
        "import subprocess\n"
        "def hang(dry, add):\n    add({'first': subprocess.Popen(['sleep', '60']).pid})\n    time.sleep(60)\n"
        "def work(dry, add):\n    add({'n': 1})\n"
    )
    assert gpu.main(["--out", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["fails"]["ended"].startswith("failed") and "TypeError" in parts["fails"]["rows"][0]["error"]
    assert parts["hangs"]["ended"] == "stopped after 2 s"
    (row,) = parts["hangs"]["rows"]
    status = Path(f"/proc/{row['first']}/status")
    # What the part started has ended, too; if nobody waits for it, it is a zombie.
    assert not status.exists() or "State:\tZ" in status.read_text()
    assert parts["works"] | {"seconds": 0} == {"ended": "complete", "seconds": 0, "rows": [{"n": 1}]}


def test_the_tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures what it is told to, keeps the fastest that runs, and leaves the rest of the table as it is."""
    from topkast.tools.gpu import tune as tune_triton

    fast, slow, broken = (configs.Config(tile, 16, 1, 4, 2) for tile in (32, 16, 64))
    monkeypatch.setattr(tune_triton, "M", {"decode": 8})
    monkeypatch.setattr(tune_triton, "candidates", lambda *_: iter([fast, slow, broken]))

    def timed(runs, where, repeats):
        runs[0]()
        chosen = products.find()  # type: ignore[call-arg]
        if chosen == broken:
            raise RuntimeError("out of shared memory")
        return [[{fast: 1.0, slow: 2.0}.get(chosen, 3.0)]]

    monkeypatch.setattr(tune_triton, "seconds", timed)
    before = json.loads(configs.PATH.read_text())
    path = tmp_path / "configs.json"
    args = argparse.Namespace(products=["sddmm"], kinds=["half"], sides=[16], rows=["decode"], size=48, repeats=1)
    args.table = path
    table = json.loads(configs.PATH.read_text())
    tune_triton.fill(table, args, torch.device("cpu"), "sm_77")
    found = json.loads(path.read_text())
    assert found.pop("sm_77")["sddmm"]["half"]["16"]["decode"] == list(fast)
    assert found == before and tune_triton.dump(before) == configs.PATH.read_text()
