"""Every file of tools/examples runs as a user would start it, and prints what it shows; each asserts what it claims."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent.parent / "tools" / "examples").glob("*.py"))
NEEDS = {"hf_trainer": "accelerate", "lightning_trainer": "lightning"}
SHOWN = {
    "accumulation": "the same sets: True",
    "amp": "skipped, no weight moved",
    "checkpointing": "both hold the same bits",
    "clipping": "of the dense one at B",
    "ddp": "gradients sent a step",
    "ema": "difference of the average from a dense one",
    "frozen": "sparse for inference only",
    "functional": "an ensemble of 4",
    "hf_trainer": "ends in the same bits",
    "lightning_trainer": "validation of the average",
    "schedule": "lr 0.0000",
}


def test_every_file_is_known() -> None:
    assert {path.stem for path in FILES} == set(SHOWN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SHOWN[path.stem] in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_short(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert 20 <= len(lines) <= 75
