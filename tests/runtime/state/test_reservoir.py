"""A reservoir on a disk that is full: an error before anything has changed, and never a signal later."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime.state.content.reservoirs import RESERVOIRS
from topkast.tests.support.truth.builders import CASES

OPTIONS = {"fwd": 0.8, "bwd": 0.6, "min_size": 1, "reservoir": "disk"}


@pytest.fixture
def small() -> Iterator[None]:
    """No file may be longer than 1 KB, as on a disk with no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(model: nn.Module) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(topkast.ReservoirError, match=r"need \d+ bytes in .*, which has \d+ bytes free; set TMPDIR"):
        topkast.sparsify(model, **OPTIONS)
    assert {name: torch.equal(p, before[name]) for name, p in model.named_parameters()} == dict.fromkeys(before, True)
    assert all(type(module).__module__.startswith("torch.nn") for module in model.modules())


def test_no_room_for_a_weight(small: None) -> None:
    refused(CASES["mlp"].model())


def test_no_room_for_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known before the first of them is converted, and the message has all that is needed."""
    model = CASES["mlp"].model()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4000))
    with pytest.raises(topkast.ReservoirError) as caught:
        topkast.sparsify(model, **OPTIONS)
    monkeypatch.undo()
    sparse = topkast.sparsify(model, **OPTIONS)
    needed = sum(m.reservoir.nbytes for m in sparse.modules() if hasattr(m, "reservoir"))
    assert re.search(rf"need {needed} bytes in .*, which has 4000 bytes free", str(caught.value))


def test_the_room_is_the_disks_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only says how long it is kills the process on a full disk, when it is written to."""
    sizes, close = [], os.close
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", lambda handle: (sizes.append(os.fstat(handle).st_blocks * 512), close(handle))[1])
        found = RESERVOIRS["disk"].allocate(300_000, torch.empty(0))
    assert sizes == [pytest.approx(found.nbytes, abs=4096)] and sizes[0] >= found.nbytes
    assert torch.count_nonzero(found) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_at_rest_the_disk_alone_holds_the_values() -> None:
    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssFile")).split()[1]) * 1024

    place = RESERVOIRS["disk"]
    found = place.allocate(2**21, torch.empty(0))
    found.copy_(torch.arange(2.0**21))
    before = mapped()
    place.rest(found)
    assert before - mapped() > 0.9 * found.nbytes
    assert torch.equal(found, torch.arange(2.0**21))
    place.rest(place.allocate(0, torch.empty(0)))
