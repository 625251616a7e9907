"""topkast.tools.bench large: a tiny run, and what it asks of the disk before it begins."""

import json
import os

import pytest

from topkast.tools.bench import __main__ as bench
from topkast.tools.bench import large as _large


@pytest.mark.long
def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.setattr(_large, "give_back_at_once", lambda: None)  # it is for the process, and this one has others
    path = tmp_path / "found.json"
    assert bench.main(["large", "--quick", "--out", str(path), "--steps", "4", "--sequence", "16"]) == 0
    found = json.loads(path.read_text())
    assert found["refreshes"] == 1 and len(found["losses"]) == 4 and found["losses"][-1] < found["losses"][0]
    assert found["dense training state"] == 16 * found["parameters"]
    assert 0.79 < found["reservoir"] / (4 * found["parameters"]) < 0.81 or found["parameters"] < 1e6
    assert found["peak"] == max(found["peak of building"], *found["peak of each step"])


@pytest.mark.parametrize("parameters", [1e7, 2.5e8, 2.5e9])
def test_size_is_about_what_was_asked(parameters):
    config = _large.decoder(parameters, 64)
    assert 12 * config.n_layer * config.n_embd**2 == pytest.approx(parameters, rel=0.1)
    assert config.n_embd == 64 * config.n_head


def test_the_reservoir_needs_a_disk(monkeypatch):
    monkeypatch.setattr(_large.tempfile, "gettempdir", lambda: "/dev/shm")
    if os.path.isdir("/dev/shm"):
        with pytest.raises(RuntimeError, match=r"/dev/shm is a tmpfs, which is memory: set TMPDIR"):
            _large.check_disk(1)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"GB free, the reservoir needs 1000000000\.0"):
        _large.check_disk(10**18)
