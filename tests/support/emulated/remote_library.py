"""A pytest plugin: the tests of the native kernels on kernels for another processor, which an emulator runs.

``TOPKAST_EMULATED`` is the command that starts server.cpp, such as ``qemu-aarch64 build/aarch64/server``. The tests
themselves and PyTorch run on this processor. Each call of a kernel sends what its pointers point to, and gets it back.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from topkast.runtime import native
from topkast.runtime.native import Conv, Image, Matrix, View

# A letter for each argument. p: the parallel_for. w, u: a matrix, a second one. v: a view. c: a convolution. x, y: its
# images. k: scratch memory. n: a number. The others are arrays, whose bytes _ARRAYS counts.
_ARGUMENTS = {
    "tk_isa_best": "", "tk_isa": "", "tk_bf16": "", "tk_set_isa": "n", "tk_width": "w", "tk_workspace": "wn",
    "tk_pack": "pvv", "tk_spmm_t_workspace": "wn",
    "tk_spmm": "pwvbnvk", "tk_spmm_t": "pwvvk", "tk_sddmm": "pwvvgk", "tk_conv_workspace": "wc",
    "tk_conv_forward": "pwcxbyk", "tk_conv_input_grad": "pwcyxk", "tk_conv_weight_grad": "pwcyxgk",
    "tk_dense": "pwd", "tk_gather": "pwvg", "tk_squares": "pwgq", "tk_scale_explored_once": "pwfg",
    "tk_assemble": "pwod", "tk_store": "pwdgo", "tk_follow": "pwugh",
    "tk_largest": "psnnnm", "tk_build_index": "pmmnnrtin",
}  # fmt: skip


def _at(address: int, count: int) -> bytes:
    return ctypes.string_at(address, count) if count else b""


def _used(w: Matrix) -> int:
    """The end of the last row of blocks."""
    return int(struct.unpack("<q", _at(w.row_ptr + 8 * -(-w.rows // w.r), 8))[0])


def _slots(w: Matrix) -> int:
    """The slots that a kernel may use. A part of stacked weights says 0, and its slots end where its last row ends."""
    return max(int(w.slots), _used(w)) if w.row_ptr else 0


class _Call:
    """One call: its arguments as the server reads them, and where the buffers that come back belong.

    Args:
        scratch: bytes of scratch memory.
        args: the arguments, as for the function of a ``CDLL``.
    """

    def __init__(self, name: str, args: tuple[Any, ...], scratch: int) -> None:
        self.kinds, self.scratch = _ARGUMENTS[name], scratch
        self.args = [getattr(arg, "_obj", arg) for arg in args]
        self.back: list[tuple[int, int]] = []
        found = {kind: arg for kind, arg in zip(self.kinds, self.args, strict=True)}
        self.w, self.u, self.conv = found.get("w"), found.get("u"), found.get("c")
        self.numbers = [arg for kind, arg in zip(self.kinds, self.args, strict=True) if kind == "n"]
        parts = [self._one(kind, arg) for kind, arg in zip(self.kinds, self.args, strict=True)]
        self.request = self._bytes(name.encode()) + struct.pack("<I", len(parts)) + b"".join(parts)

    def _one(self, kind: str, arg: Any) -> bytes:
        if kind == "p":
            return b"p"
        if kind == "n":
            return b"w" + struct.pack("<q", arg)
        if kind == "k":
            return b"k" + struct.pack("<Q", self.scratch)
        if isinstance(arg, ctypes.Structure):
            return self._structure(kind, arg)
        if arg is None:
            return b"w" + struct.pack("<q", 0)
        return b"b" + self._buffer(arg, self._array(kind))

    def _structure(self, kind: str, arg: ctypes.Structure) -> bytes:
        pointers: dict[str, int] = {}
        if isinstance(arg, Matrix):
            blocks, slots = -(-arg.rows // arg.r), _slots(arg)
            pointers = {
                "values": 4 * slots * arg.r * arg.c, "row_ptr": 8 * (blocks + 1), "row_fwd": 8 * blocks,
                "cols": slots * arg.col_bytes,
            }  # fmt: skip
        elif isinstance(arg, View):
            last = (arg.m - 1) * arg.stride_m + (arg.n - 1) * arg.stride_n + 1
            pointers = {"data": 4 * (arg.m * arg.n if arg.width else last) if arg.m * arg.n else 0}
        elif isinstance(arg, Image):
            pointers = {"data": 4 * self._image(kind, arg)}
        given = {name: size for name, size in pointers.items() if getattr(arg, name)}
        fixes = [
            struct.pack("<I", getattr(type(arg), name).offset) + self._buffer(getattr(arg, name), size)
            for name, size in given.items()
        ]
        return b"s" + self._bytes(bytes(arg)) + struct.pack("<I", len(fixes)) + b"".join(fixes)

    def _image(self, kind: str, image: Image) -> int:
        """The numbers from the first of an image's batch to the last."""
        conv, w = self.conv, self.w
        assert isinstance(conv, Conv) and isinstance(w, Matrix)
        sizes = getattr(conv, "in") if kind == "x" else conv.out
        channels = conv.channels if kind == "x" else w.rows * (conv.groups if conv.transposed else 1)
        batch, positions = conv.batch, math.prod(sizes)
        first, rest = (positions, channels * batch) if image.order == 2 else (batch, channels * positions)
        return (first - 1) * image.stride + rest if first * rest else 0

    def _array(self, kind: str) -> int:
        """The bytes of an array."""
        w, u = self.w, self.u
        if kind in "smrti":  # functions without a matrix: (scores or sets, and what is found), of [rows, columns]
            rows, columns = self.numbers[:2]
            if kind == "i":  # cols, with room for the members of B
                return sum(_at(self.args[2], rows * columns)) * self.numbers[-1]
            return {"s": 4 * rows * columns, "m": rows * columns, "r": 8 * (rows + 1), "t": 8 * rows}[kind]
        if kind == "f":  # a single number, which the kernel changes
            return 4
        assert isinstance(w, Matrix)
        blocks, unit = -(-w.rows // w.r), w.r * w.c
        if kind == "b":
            return 4 * w.rows * (self.conv.groups if self.conv is not None and self.conv.transposed else 1)
        if kind == "g":
            return 4 * _slots(w) * unit
        if kind == "h":
            assert isinstance(u, Matrix)
            return 4 * _slots(u) * unit
        if kind == "d":
            return 4 * w.rows * w.columns
        if kind == "q":
            return 8 * blocks
        assert kind == "o"  # the reservoir: all blocks that are not in B
        return 4 * unit * (blocks * -(-w.columns // w.c) - _used(w))

    def _buffer(self, address: int, size: int) -> bytes:
        self.back.append((address, size))
        return self._bytes(_at(address, size))

    @staticmethod
    def _bytes(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content


class RemoteLibrary:
    """What ``ctypes.CDLL`` is for a library of this processor."""

    tk_run_serial = tk_run_gomp = ctypes.c_void_p(0)  # nothing here calls them

    def __init__(self, command: list[str]) -> None:
        # In the library these two are loops over weights. The last two are called by compiled code only.
        self.tk_squares_of_all = functools.partial(_squares_of_all, self)
        self.tk_scale_all_once = functools.partial(_scale_all_once, self)
        self.tk_prepared_workspace, self.tk_run_prepared = (functools.partial(self._call, "none") for _ in range(2))
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._name = command[-1]  # as CDLL has it; the planner reads this file to know the kernels
        self.calls, self.lock, self.thread = 0, threading.Lock(), threading.local()

    def __getattr__(self, name: str) -> Callable[..., int]:
        # The others of tk_bf16 are only called where it is not 0; an emulated processor says 0.
        if name not in _ARGUMENTS and not name.startswith("tk_bf16_"):
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *args: Any) -> int:
        call = _Call(name, args, 4 * getattr(self.thread, "scratch", 0))
        assert self.server.stdin is not None and self.server.stdout is not None
        with self.lock:  # the server does one call at a time
            self.server.stdin.write(call.request)
            self.server.stdin.flush()
            answer = self.server.stdout.read(8 + sum(size for _, size in call.back))
            self.calls += 1
        assert len(answer) >= 8, f"the server ended during {name}, with status {self.server.wait()}"
        at = 8
        for address, size in call.back:
            ctypes.memmove(address, answer[at : at + size], size)
            at += size
        result = int(struct.unpack_from("<q", answer)[0])
        if name in ("tk_isa_best", "tk_isa", "tk_bf16", "tk_set_isa"):
            result = ctypes.c_int32(result).value  # the upper half of the register has no meaning
        if name.endswith("workspace"):
            self.thread.scratch = result  # of the product that this thread calls next
        return result


def _squares_of_all(remote: RemoteLibrary, threads: Any, table: Any, count: int, rows: int, sums: int) -> None:
    for n, w in enumerate(table):
        remote.tk_squares(threads, w, w.values, rows)
        found = (ctypes.c_double * -(-w.rows // w.r)).from_address(rows)
        ctypes.c_double.from_address(sums + 8 * n).value = sum(found)


def _scale_all_once(remote: RemoteLibrary, threads: Any, table: Any, count: int, factors: int) -> None:
    for n, w in enumerate(table):
        remote.tk_scale_explored_once(threads, w, factors + 4 * n, w.values)


def pytest_configure(config: pytest.Config) -> None:
    """Let topkast find the server instead of the library."""
    command = os.environ["TOPKAST_EMULATED"].split()
    remote = RemoteLibrary(command)
    native.library.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPKAST_NATIVE", command[-1])
        patch.setattr(ctypes, "CDLL", lambda path: remote)
        assert native.library() is remote
    config.stash[CALLS] = remote


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many calls the emulated kernels answered."""
    terminalreporter.write_line(f"{config.stash[CALLS].calls} calls of emulated kernels")


CALLS = pytest.StashKey[RemoteLibrary]()
