"""The native kernels for other processors, systems and compilers: a sample of `make aarch64`, `make macos`, `make
windows` and `make clang`. `.ci/run` installs the tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import topkast
from topkast.tests.support.tools_needed import need

ROOT = Path(topkast.__file__).parent
NATIVE = ROOT / "runtime" / "native"
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-Wno-psabi", *(f"-I{path}" for path in sorted(NATIVE.iterdir()) if path.is_dir())]
# A few blocks of every float kernel, and convolutions; `make aarch64` runs the rest.
SAMPLE = "test_every_layout and (block0 or block4) or bitwise or stacked or many_tiles and shape3"


@pytest.mark.long
def test_aarch64_computes_the_same(tmp_path: Path) -> None:
    """The library as compiled for aarch64, with few optimisations to save time, in an emulator."""
    need(programs=(CROSS, QEMU), get="apt install g++-aarch64-linux-gnu qemu-user")
    sources = [path for path in sorted(NATIVE.glob("*/*.cpp")) if path.parent.name not in ("ort", "int8")]
    server = ROOT / "tests" / "support" / "emulated" / "server.cpp"
    made = tmp_path / "server"
    subprocess.run([CROSS, *FLAGS, "-O1", "-static", *map(str, sources), str(server), "-o", str(made)], check=True)
    tests = [f"tests/runtime/native/{name}.py" for name in ("test_native", "test_native_conv")]
    plugin = ["-p", "topkast.tests.support.emulated.remote_library", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "-m", "not long", "-k", SAMPLE, *tests],
        cwd=ROOT,
        env={**os.environ, "TOPKAST_EMULATED": f"{QEMU} {made}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    calls, passed = (re.search(rf"(\d+) {what}", ran.stdout) for what in ("calls of emulated kernels", "passed"))
    assert calls and passed and int(calls[1]) > 100 and int(passed[1]) >= 10, ran.stdout
    assert "skipped" not in ran.stdout, ran.stdout


# zig's names of targets; the files differ by system (processor, threads) or hold most of the kernels.
@pytest.mark.long
@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-windows-gnu"])
def test_clang_compiles(target: str, tmp_path: Path) -> None:
    """Objects only, without optimisation: to link, zig compiles its C++ library for a minute first."""
    need(packages=("ziglang",), get="make .venv/.zig")
    machine = NATIVE / "machine"
    sources = [machine / f"{name}.cpp" for name in ("dispatch", "isa_portable", "parallel", "processor")]
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *FLAGS, "-O0", "-Werror", "-c"]
    for source in sources:
        made = tmp_path / f"{source.stem}.o"
        subprocess.run([*command, str(source), "-o", str(made)], check=True)
        assert made.stat().st_size > 0
