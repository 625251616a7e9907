"""The native CPU kernels: the library in this folder, which is loaded if it was built, and its structs.

The threads are those of the OpenMP runtime that torch has already loaded: a second pool would compete for the same
cores.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from pathlib import Path

import torch

ISAS = ("portable", "avx2", "avx512")
HELD = {"default": 0, "avx2": 1, "avx512": 2}  # values of ATEN_CPU_CAPABILITY
SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}  # of shared libraries; '.so' elsewhere


class Parallel(Structure):
    _fields_ = (("run", c_void_p), ("pool", c_void_p), ("threads", c_int32))


class GompPool(Structure):
    _fields_ = (("gomp_parallel", c_void_p), ("threads", c_int32))


class Matrix(Structure):
    _fields_ = (
        ("values", c_void_p), ("row_ptr", c_void_p), ("row_fwd", c_void_p), ("cols", c_void_p),
        ("rows", c_int64), ("columns", c_int64), ("slots", c_int64),
        ("r", c_int32), ("c", c_int32), ("col_bytes", c_int32),
    )  # fmt: skip


class View(Structure):
    _fields_ = (
        ("data", c_void_p), ("m", c_int64), ("n", c_int64), ("stride_m", c_int64), ("stride_n", c_int64),
        ("width", c_int64),
    )  # fmt: skip


class After(Structure):
    _fields_ = (("act", c_int32), ("backward", c_int32), ("other", View))


class Image(Structure):
    _fields_ = (("data", c_void_p), ("stride", c_int64), ("order", c_int32))


class Conv(Structure):
    _fields_ = (
        ("batch", c_int64), ("channels", c_int64),
        *((name, c_int64 * 3) for name in ("in", "out", "kernel", "stride", "padding", "dilation")),
        ("groups", c_int32), ("transposed", c_int32),
    )  # fmt: skip


_CONVOLUTION = [POINTER(Parallel), POINTER(Matrix), POINTER(Conv), POINTER(Image)]
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "tk_isa_best": (c_int32, []),
    "tk_isa": (c_int32, []),
    "tk_set_isa": (c_int32, [c_int32]),
    "tk_workspace": (c_int64, [POINTER(Matrix), c_int64]),
    "tk_spmm_t_workspace": (c_int64, [POINTER(Matrix), c_int64]),
    "tk_width": (c_int64, [POINTER(Matrix)]),
    "tk_pack": (None, [POINTER(Parallel), POINTER(View), POINTER(View)]),
    "tk_spmm": (None, [POINTER(Parallel), POINTER(Matrix), POINTER(View), c_void_p, c_int32, POINTER(View), c_void_p]),
    "tk_spmm_t": (None, [POINTER(Parallel), POINTER(Matrix), POINTER(View), POINTER(View), c_void_p]),
    "tk_dense": (None, [POINTER(Parallel), POINTER(Matrix), c_void_p]),
    "tk_gather": (None, [POINTER(Parallel), POINTER(Matrix), POINTER(View), c_void_p]),
    "tk_squares": (None, [POINTER(Parallel), POINTER(Matrix), *[c_void_p] * 2]),
    "tk_scale_explored_once": (None, [POINTER(Parallel), POINTER(Matrix), *[c_void_p] * 2]),
    "tk_squares_of_all": (None, [POINTER(Parallel), c_void_p, c_int64, *[c_void_p] * 2]),
    "tk_scale_all_once": (None, [POINTER(Parallel), c_void_p, c_int64, c_void_p]),
    "tk_assemble": (None, [POINTER(Parallel), POINTER(Matrix), *[c_void_p] * 2]),
    "tk_store": (None, [POINTER(Parallel), POINTER(Matrix), *[c_void_p] * 3]),
    "tk_follow": (None, [POINTER(Parallel), POINTER(Matrix), POINTER(Matrix), *[c_void_p] * 2]),
    "tk_largest": (None, [POINTER(Parallel), c_void_p, *[c_int64] * 3, c_void_p]),
    "tk_build_index": (None, [POINTER(Parallel), *[c_void_p] * 2, c_int64, c_int64, *[c_void_p] * 3, c_int32]),
    "tk_sddmm": (None, [POINTER(Parallel), POINTER(Matrix), POINTER(View), POINTER(View), c_void_p, c_void_p]),
    "tk_prepared_workspace": (c_int64, [c_void_p]),
    "tk_run_prepared": (c_int32, [c_void_p] * 10),
    "tk_bf16": (c_int32, []),
    "tk_bf16_workspace": (c_int64, [POINTER(Parallel), POINTER(Matrix), c_int64]),
    "tk_bf16_spmm": (
        None,
        [POINTER(Parallel), POINTER(Matrix), POINTER(View), c_void_p, POINTER(View), POINTER(After), c_void_p],
    ),
    "tk_bf16_spmm_t": (
        None,
        [POINTER(Parallel), POINTER(Matrix), POINTER(View), POINTER(View), POINTER(After), c_void_p],
    ),
    "tk_bf16_sddmm": (None, [POINTER(Parallel), POINTER(Matrix), POINTER(View), POINTER(View), c_void_p, c_void_p]),
    "tk_bf16_activate_grad": (None, [POINTER(Parallel), c_int32, *[c_void_p] * 3, c_int64]),
    "tk_conv_workspace": (c_int64, [POINTER(Matrix), POINTER(Conv)]),
    "tk_conv_forward": (None, [*_CONVOLUTION, c_void_p, POINTER(Image), c_void_p]),
    "tk_conv_input_grad": (None, [*_CONVOLUTION, POINTER(Image), c_void_p]),
    "tk_conv_weight_grad": (None, [*_CONVOLUTION, POINTER(Image), c_void_p, c_void_p]),
}


def isa() -> str | None:
    """The instruction set in use, one of :data:`ISAS`; None without the library."""
    lib = library()
    return None if lib is None else ISAS[lib.tk_isa()]


def path() -> Path | None:
    """The path of the library; None if no compiler was available to build it during the installation.

    ``TOPKAST_NATIVE`` is the path of another build of the library (``make sanitize``).
    """
    other = os.environ.get("TOPKAST_NATIVE")
    if other:
        return Path(other).resolve()
    built = Path(__file__).with_name(f"libtopkast{SUFFIXES.get(sys.platform, '.so')}").resolve()
    return built if built.exists() else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None if it was not built. ATEN_CPU_CAPABILITY holds the library to an instruction set, as it
    holds torch's own kernels and Inductor's code."""
    found = path()
    if found is None:
        return None
    lib = ctypes.CDLL(str(found))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.tk_set_isa(min(lib.tk_isa_best(), HELD.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), len(ISAS))))
    return lib


@functools.cache
def _gomp() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch's own kernels use; None if there is none.

    Only Linux lists the libraries of a process in a file. On other systems the kernels use one thread.
    """
    torch.get_num_threads()
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps}
    except FileNotFoundError:
        return None
    for path in sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libiomp", "libomp"))):
        try:
            return ctypes.cast(ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL).GOMP_parallel, c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def threads() -> int:
    """How many threads a product may use now: torch's number, or 1 if torch has no OpenMP runtime."""
    return torch.get_num_threads() if _gomp() else 1


def parallel() -> Parallel:
    """A parallel_for on torch's threads, with the current number of ``torch.set_num_threads``."""
    return _parallel(threads())


@functools.cache
def _parallel(count: int) -> Parallel:
    """The parallel_for of a number of threads. Calls only read it, so all of them share it."""
    lib = library()
    assert lib is not None
    if count == 1:
        return Parallel(ctypes.cast(lib.tk_run_serial, c_void_p), None, 1)
    pool = GompPool(_gomp(), count)
    made = Parallel(ctypes.cast(lib.tk_run_gomp, c_void_p), ctypes.addressof(pool), count)
    made.keep = pool
    return made
