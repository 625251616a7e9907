"""Blocks that glibc keeps for the next step: in the heap, whose pages stay, and not mapped anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from topkast.runtime.memory_pages import keep_blocks

CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
PROGRAM = """
import torch
import topkast
from topkast.runtime.memory_pages import keep_blocks

def in_heap():
    block = torch.empty(40 << 20, dtype=torch.uint8)
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    return any(int(begin, 16) <= block.data_ptr() < int(end, 16) for begin, end in spans)

before = in_heap()
topkast.compile(torch.nn.Linear(64, 64), backend="eager")
print(before, in_heap(), keep_blocks())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_compile_keeps_blocks() -> None:
    """A block of 40 MiB is mapped before, and lies in the heap after."""
    env = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    before, after, kept = done.stdout.split()
    assert before == "False"
    assert after == kept  # glibc before 2.35 refuses, and then the block is mapped


@pytest.mark.parametrize("name", CHOSEN)
def test_what_the_environment_says_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1048576")
    assert not keep_blocks()
