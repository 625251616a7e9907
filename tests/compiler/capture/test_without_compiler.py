"""A machine without a C++ compiler: Inductor's place is taken by what needs none, and that is said."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

import topkast
from topkast.compiler.capture import cpp_compiler as cxx

PROGRAM = """
import warnings
import torch
from torch import nn
import topkast

model = topkast.compile(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)), min_size=1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for size in (4, 4, 7):
        model(torch.randn(size, 16)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        model(torch.randn(3, 16))
print([str(warning.message)[:41] for warning in seen if "topkast" in str(warning.message)])
facts = topkast.report(model)
print(facts.backend, [sorted(row["fused"]) for row in facts.sites], [row["unfused"] for row in facts.sites])
"""
EXPECTED = """['topkast: no C++ compiler was found, which']
aot_eager (no C++ compiler for inductor) [['forward', 'weight gradient'], ['forward', 'input gradient', \
'weight gradient']] [[], []]
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["PATH", "CXX"])
def test_a_machine_without_one(how: str, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"PATH": str(tmp_path)} if how == "PATH" else {"CXX": "a-compiler-that-is-not-there"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == EXPECTED


def step(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = topkast.compile(nn.Linear(16, 24), min_size=1, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
    return model


@pytest.fixture
def nothing_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cxx, "_missed", [])


def test_it_trains_as_aot_eager_does(nothing_missed: None) -> None:
    missing = {"cpp.cxx": (None, "a-compiler-that-is-not-there"), "fx_graph_cache": False}
    with torch._inductor.config.patch(missing), pytest.warns(UserWarning, match="Install g") as seen:
        model = step()
        dense = nn.Sequential(nn.Linear(4, 4), nn.GELU())
        with pytest.raises(InductorError, match=InvalidCxxCompiler.__name__):
            torch.compile(dense)(torch.randn(2, 4))
    assert sum("topkast" in str(warning.message) for warning in seen) == 1, "once"
    expected = step(backend="aot_eager")
    for name, value in topkast.dense_state_dict(expected, "all").items():
        assert torch.equal(topkast.dense_state_dict(model, "all")[name], value)
    assert topkast.report(model).backend.startswith("aot_eager") and topkast.report(expected).backend == "aot_eager"


def test_a_compiler_that_is_named_in_the_options(nothing_missed: None) -> None:
    with pytest.warns(UserWarning, match="no C"):
        step(options={"cpp.cxx": (None, "a-compiler-that-is-not-there")})


def test_a_compiler_that_fails_is_an_error(tmp_path: Path, nothing_missed: None) -> None:
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\ncase "$*" in --version|-dumpmachine) echo "g++ 13"; exit 0;; esac\nexit 1\n')
    broken.chmod(0o755)
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(broken)), "fx_graph_cache": False}),
        warnings.catch_warnings(),
        pytest.raises(InductorError, match=CppCompileError.__name__),
    ):
        warnings.simplefilter("ignore")
        step()
    assert not cxx.missed_compiler()


def test_a_graph_of_another_device_is_left_to_inductor() -> None:
    with torch._inductor.config.patch({"cpp.cxx": (None, "a-compiler-that-is-not-there")}):
        assert not cxx.lacks_compiler([torch.ones(1), torch.empty(1, device="meta")], None)
