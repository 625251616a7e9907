"""Sessions to be measured side by side, and what one takes of memory, seen from a process of its own.

Run as a script it is that process: it imports nothing of topkast or torch, opens the file in ONNX Runtime, runs it once
and prints the growth of its memory.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Feeds = Mapping[str, np.ndarray]


def session(path: Path, threads: int, library: Path | None) -> onnxruntime.InferenceSession:
    """A session with topkast's kernels, if it was built, which does not spin while another one runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(made: onnxruntime.InferenceSession, feeds: Feeds) -> Callable[[], object]:
    return lambda: made.run(None, dict(feeds))


def bound_runner(made: onnxruntime.InferenceSession, feeds: Feeds) -> Callable[[], object]:
    """Runs a session that writes its results where it wrote them before.

    ``session.run`` makes fresh arrays for the results. The system then maps their pages anew: a quarter of a
    millisecond for 4 MB, which a layer between two others never pays.
    """
    binding = made.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output, found in zip(made.get_outputs(), made.run(None, dict(feeds)), strict=True):
        binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(found))
    return lambda: made.run_with_iobinding(binding)


def memory(path: Path, feeds: Feeds, threads: int, library: Path) -> dict[str, int]:
    """Growth in bytes of a fresh process that opens ``path`` and runs it once.

    ``resident`` is what the system sees; ``held`` is left when the heap has given back what was freed while loading.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "feeds.npz"
        arrays: dict[str, Any] = dict(feeds)
        np.savez(given, **arrays)
        command = [
            sys.executable,
            "-m",
            "topkast.tools.common.onnx_sessions",
            str(path),
            str(given),
            str(threads),
            str(library),
        ]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _resident() -> int:
    """Bytes of this process that are in memory, from Linux."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def main(path: str, given: str, threads: str, library: str) -> None:
    with np.load(given) as arrays:
        feeds = dict(arrays)
    before = _resident()
    made = session(Path(path), int(threads), Path(library))
    made.run(None, feeds)
    resident = _resident() - before
    ctypes.CDLL(None).malloc_trim(0)
    print(json.dumps({"resident": resident, "held": _resident() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
