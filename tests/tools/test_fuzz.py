"""topkast.tools.fuzz: every kind holds for a while, and what fails is shrunk and printed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from topkast.tools.fuzz import __main__ as fuzz
from topkast.tools.fuzz import find_failure
from topkast.tools.fuzz.kinds import wrong_arguments

SECONDS = float(os.environ.get("TOPKAST_FUZZ_SECONDS", "7"))  # for all kinds together


@pytest.mark.long
def test_a_while_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", "7", "--minutes", str(SECONDS / 60), "--out", str(tmp_path / "counts.json")]
    assert fuzz.main(options) == 0, capsys.readouterr().out


def test_a_failure_is_shrunk_and_becomes_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hypothesis import strategies as st

    def check(case: list[int]) -> None:
        assert sum(case) < 10

    monkeypatch.setattr(wrong_arguments, "cases", st.lists(st.integers(0, 100)))
    monkeypatch.setattr(wrong_arguments, "check", check)
    found = find_failure.search("wrong_arguments", 1, 1.0, tmp_path)
    assert found["failures"][0]["case"] == "[10]" and found["failures"][0]["after"] >= 0
    assert "check([10])" in fuzz.program("wrong_arguments", found["failures"][0])
    assert found["failures"][0]["after of a core"] >= 0
    assert find_failure.holds("wrong_arguments", "[9]") and not find_failure.holds("wrong_arguments", "[10]")


def test_seconds_of_a_core_do_not_pass_while_others_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hypothesis import strategies as st

    monkeypatch.setattr(wrong_arguments, "cases", st.integers())
    monkeypatch.setattr(wrong_arguments, "check", lambda case: time.sleep(0.001))
    begin = time.process_time(), time.monotonic()
    assert find_failure.search("wrong_arguments", 1, 0.2, tmp_path, 1, "processor")["failures"] == []
    used, passed = time.process_time() - begin[0], time.monotonic() - begin[1]
    assert used >= 0.2 and passed > used


def test_a_process_that_dies_leaves_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    class Died:
        returncode, stderr = -11, "gone"

    def run(command: list[str], **_: Any) -> Died:
        Path(command[-2], "case").write_text("('a case',)")
        return Died()

    monkeypatch.setattr(fuzz.subprocess, "run", run)
    monkeypatch.setattr(fuzz, "environment", lambda kind, backend: {})
    found = fuzz.run("kills", 1, 1.0, "drawn")
    error = "the process ended with -11: gone"
    assert found["failures"] == [{"case": "('a case',)", "error": error, "after": 0}]


def test_counts_are_added_and_a_seed_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    found = {"cases": {"held": 3}, "failures": []}
    for seed, cases in ((1, 3), (2, 6), (2, 6)):
        counts = fuzz.add(path, "kills", seed, found, f"tree of {seed}")
        fuzz.write(path, {}, {}, {"kinds": counts})
        assert counts["kills"]["cases"] == {"held": cases}
    assert counts["kills"]["commits"] == ["tree of 1", "tree of 2"]
