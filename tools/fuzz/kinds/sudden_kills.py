"""SIGKILL at a random moment while a process saves: the file is one of those that were saved, and nothing is left."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import topkast
from topkast.runtime.planner import cache

from .trained import everything, same, trained

# (what is written, seconds until the kill, how often the kill is repeated on what is left)
cases = st.tuples(st.sampled_from(["checkpoint", "times"]), st.floats(0, 0.03), st.integers(1, 3))


@functools.cache
def pair() -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    return [trained(3, seed=1), trained(4, seed=2)]


def write_for_ever(what: str, path: Path) -> None:
    number = 0
    while True:
        number += 1
        if what == "checkpoint":
            topkast.save(pair()[number % 2][0], path, pair()[number % 2][1])
        else:
            cache._store(f'["{number % 50}"]', {"seconds": {"native": 1.0}, "when": 1.0, "tries": 1, "doubtful": False})


def check(case: Any) -> str:
    what, seconds, repeats = case
    states = [everything(*one) for one in pair()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file" if what == "checkpoint" else "times.json")
        os.environ["TOPKAST_CACHE"] = folder
        cache._read_files.clear()
        for _ in range(repeats):
            child = os.fork()
            if child == 0:
                write_for_ever(what, path)
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        cache._read_files.clear()
        if what == "checkpoint":
            if path.exists():
                model, optimizer = trained(0)
                topkast.load(model, path, optimizer)
                assert any(same(everything(model, optimizer), state) for state in states), "neither of those saved"
            topkast.save(*pair()[0][:1], path)
        else:
            assert not path.exists() or cache._read(path), "the file of times is damaged"
            cache._store('["end"]', {"seconds": {"native": 1.0}, "when": 1.0, "tries": 1, "doubtful": False})
        left = [entry.name for entry in Path(folder).iterdir() if entry != path]
        assert not left, f"left by killed processes: {left}"
    return what
