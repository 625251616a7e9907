"""The CUDA kernels as compiled for a GPU, run by the emulator of tests/support/ptx; and what the emulator refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from topkast.tests.support.interpreted import INTERPRETED
from topkast.tests.support.ptx import Fault, sweep_table
from topkast.tests.support.ptx.grid import launch
from topkast.tests.support.ptx.memories import Global
from topkast.tools.common.places import ROOT

# Every thread writes its number to shared memory and reads that of thread 63 - i, of another warp.
REVERSE = """
.visible .entry reverse(.param .u64 reverse_param_0)
{
    .reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred %p<2>;
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    st.shared.b32 [%r2+0], %r1;
    bar.sync 0;
    sub.s32 %r3, 252, %r2;
    ld.shared.b32 %r4, [%r3+0];
    ld.param.b64 %rd1, [reverse_param_0];
    mov.u32 %r5, %ctaid.x;
    shl.b32 %r6, %r5, 8;
    add.s32 %r7, %r6, %r2;
    cvt.u64.u32 %rd2, %r7;
    add.s64 %rd3, %rd1, %rd2;
    st.global.b32 [%rd3+0], %r4;
    ret;
}
"""


def reverse(ptx: str = REVERSE, programs: int = 2, shared: int = 256) -> torch.Tensor:
    out, memory = torch.zeros(128, dtype=torch.int32), Global()
    memory.add(out.data_ptr(), out.nbytes)
    launch(ptx, [out.data_ptr()], (programs, 1, 1), 64, shared, memory)
    return out


def test_a_right_program_runs() -> None:
    assert reverse().tolist() == [*range(63, -1, -1)] * 2


@pytest.mark.parametrize("width, factor", [(16, 1366), (32, 89478486)])
def test_the_high_half_of_a_product(width: int, factor: int) -> None:
    """Division by 48, as Triton compiles it for blocks of 48: a multiplication, whose low half is dropped."""
    divide = f"""
    .reg .b{width} %q<3>;
    cvt.u{width}.u32 %q1, %r4;
    mul.hi.u{width} %q2, %q1, {factor};
    cvt.u32.u{width} %r4, %q2;
    ld.param"""
    out = reverse(REVERSE.replace("ld.param", divide, 1))
    assert out.tolist() == [i // 48 for i in range(63, -1, -1)] * 2


@pytest.mark.parametrize("old, new, message", [
    ("bar.sync 0;", "", "load: no barrier since another warp wrote"),
    ("ret;", "st.shared.b32 [%r2+0], %r4; ret;", "store: no barrier since another warp used"),
    ("sub.s32 %r3, 252, %r2;", "mov.u32 %r3, 0; st.shared.b32 [%r3+0], %r1;", "two lanes write different"),
    ("st.shared.b32 [%r2+0], %r1;", "", "that nobody wrote"),
    ("[%rd3+0]", "[%rd3+2]", "not aligned to 4 bytes"),
    ("[%rd3+0]", "[%rd3+512]", "out of bounds"),
    ("[%r3+0]", "[%r3+1024]", "shared memory out of bounds"),
    ("shl.b32 %r6, %r5, 8", "shl.b32 %r6, %r5, 7", "two programs write the same place"),
    ("bar.sync 0;", "setp.lt.u32 %p1, %r1, 8; @%p1 bra $L; bar.sync 0;\n$L:\n", "the threads are apart"),
])  # fmt: skip
def test_what_a_gpu_would_not_notice_is_refused(old: str, new: str, message: str) -> None:
    assert old in REVERSE
    with pytest.raises(Fault, match=message):
        reverse(REVERSE.replace(old, new))


def sweep(folder: Path, capability: int, *arguments: str) -> list[dict[str, Any]]:
    module = "topkast.tests.support.ptx.sweep"
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", module, str(capability), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def right(rows: list[dict[str, Any]], capability: int) -> None:
    """Every product is right, spills nothing, and uses the tensor cores that its dtype and block allow."""
    assert rows
    for row in rows:
        assert row["found"] == "right", row
        for each in row["launches"]:
            assert each["stack"] == 0 and each["shared"] <= {80: 163, 90: 227}[capability] * 1024, (row, each)
            if each["kernel"] in ("spmm_kernel", "sddmm_kernel") and row["dtype"] != "float32":
                large = capability == 90 and row["case"][0] >= 64
                assert each["wgmma"] > 0 or (not large and each["mma"] > 0), (row, each)


@INTERPRETED[0]
def test_a_sample_of_the_compiled_kernels(tmp_path: Path) -> None:
    right(sweep(tmp_path, 90, "--blocks", "16x16", "--dtypes", "bfloat16", "--cases", "2"), 90)


@pytest.mark.long
@INTERPRETED[0]
def test_compiled_for_hopper_and_ampere(tmp_path: Path) -> None:
    """A part of what ``python -m topkast.tests.support.ptx.sweep`` runs whole, by hand."""
    right(sweep(tmp_path, 90, "--blocks", "64x64", "--dtypes", "bfloat16", "--cases", "1", "4"), 90)
    right(sweep(tmp_path, 90, "--blocks", "16x16", "--dtypes", "float32", "--cases", "1"), 90)
    right(sweep(tmp_path, 80, "--blocks", "48x16", "1x1", "--dtypes", "bfloat16", "--cases", "3"), 80)


@pytest.mark.long
@INTERPRETED[0]
def test_planted_faults_are_caught(tmp_path: Path) -> None:
    """In code that Triton compiled: barriers that are missing, and waits that are too weak."""
    messages = {
        "no first barrier": "no barrier since another warp wrote",
        "no second barrier": "no barrier since another warp used",
        "copies are not waited for": "while a copy to it is on its way",
        "products are not waited for": "before the product that writes it was waited for",
    }
    rows = sweep(tmp_path, 90, "--blocks", "64x64", "--dtypes", "bfloat16", "--cases", "4", "--faults", *messages)
    assert {row["fault"] for row in rows} == set(messages)
    assert all(messages[row["fault"]] in row["found"] for row in rows), rows


@pytest.mark.long
@INTERPRETED[0]
@pytest.mark.parametrize("capability, case", [(90, "1x1:float32"), (90, "5x6:bfloat16"), (80, "32x32:float32")])
def test_a_refresh_as_compiled(capability: int, case: str) -> None:
    """Scores, selection, index, θ and optimizer state; nothing is spilled."""
    command = [sys.executable, "-m", "topkast.tests.support.ptx.refreshed", str(capability), case]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("right\n"), done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    assert len(rows) > 30 and not [row for row in rows if row["stack"]]


def test_the_page_shows_the_stored_sweep() -> None:
    rows = sweep_table.stored()
    assert all(row["found"] == "right" for row in rows.values())
    assert sweep_table.table(rows) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
