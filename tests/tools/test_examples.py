"""Every file of tools/examples runs and prints what it shows; each asserts what it claims."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from topkast.tools.common.places import ROOT

FILES = sorted((ROOT / "tools" / "examples").glob("*.py"))
# name -> the package it needs
OUTSIDE = {"ddp": "torch", "generate": "transformers", "hf_trainer": "accelerate", "lightning_trainer": "lightning"}
SHOWN = {
    "accumulation": "the same sets: True",
    "amp": "skipped, no weight moved",
    "checkpointing": "both hold the same bits",
    "clipping": "of the dense one at B",
    "ddp": "gradients sent a step",
    "ema": "difference of the average from a dense one",
    "frozen": "sparse for inference only",
    "functional": "an ensemble of 4",
    "generate": "generated without torch",
    "hf_trainer": "ends in the same bits",
    "lightning_trainer": "validation of the average",
    "own_method": "ends in the same bits",
    "schedule": "lr 0.0000",
}


def test_every_file_is_known() -> None:
    assert {path.stem for path in FILES} == set(SHOWN)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in OUTSIDE], ids=lambda path: path.stem)
def test_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert SHOWN[path.stem] in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("path", [path for path in FILES if path.stem in OUTSIDE], ids=lambda path: path.stem)
def test_runs_as_a_program(path: Path, tmp_path: Path) -> None:
    """What starts processes of its own, or a trainer that leaves its settings behind."""
    pytest.importorskip(OUTSIDE[path.stem])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SHOWN[path.stem] in done.stdout
    assert list(tmp_path.iterdir()) == []
