"""tools/examples/fsdp: the decoder goes on after an interruption in the same bits; what runs on the CPU runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from topkast.tools.common.places import ROOT

FOLDER = ROOT / "tools" / "examples" / "fsdp"
NOT_RUN = {"accelerate_plugin", "sharded_hf_trainer"}  # trainers that use FSDP2 on GPUs only


def _output(*command: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_was_not_run_says_so() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files == {"train_decoder", "kills", "lightning_strategy", *NOT_RUN}
    assert {path.stem for path in FOLDER.glob("*.py") if "Not run" in path.read_text()} == NOT_RUN


@pytest.mark.long
def test_a_decoder_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(FOLDER / "train_decoder.py")]
    start += ["--folder", str(tmp_path), "--steps", "7", "--save-every", "3"]
    through = _output(*start)
    assert "continue" not in through
    (tmp_path / "step-00000006" / ".metadata").unlink()  # as if a rank had died inside this save
    resumed = _output(*start)
    assert "continue after step 3" in resumed
    hashes = [re.findall(r"have the hash (\w+)", text) for text in (through, resumed)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 1
    shutil.rmtree(tmp_path)


@pytest.mark.long
def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="an extra: examples")
    assert "of the weights used" in _output(FOLDER / "lightning_strategy.py")
