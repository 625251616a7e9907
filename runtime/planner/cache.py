"""The planner's times, remembered on disk per machine and version.

Other programs may have run while a time was measured, so no time is kept for ever. An entry expires after
:data:`DAYS` days. An entry with a time that is far longer than its arithmetic explains is measured again, at once and
by later processes, up to :data:`TRIES` times; the minimum counts. ``TOPKAST_CACHE`` is the folder of the file; the
default is ``~/.cache/topkast``.

A checkpoint holds the times of its model, see :func:`of_model`. With ``torch.use_deterministic_algorithms(True)`` the
times of a loaded checkpoint come before those of the file, and no time that is known is measured again. So a run takes
the same kernels when it is repeated on the same machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from topkast.runtime.doing import doing
from topkast.runtime.kernels import native_library
from topkast.runtime.new_file import new_file

DAYS, TRIES, AT_ONCE, PAUSE = 30, 6, 3, 0.05
Times = dict[str, float]
Entries = dict[str, dict[str, Any]]  # key -> seconds by name, when (seconds since 1970), tries, doubtful

_read_files: dict[Path, dict[str, Entries]] = {}
_used: dict[str, Times] = {}  # what this process decided by
_loaded: dict[str, Times] = {}  # the times of the last loaded checkpoint of this machine


def remembered(
    key: str, measure: Callable[[], Times], bound: float = math.inf, names: Collection[str] | None = None
) -> Times:
    """The seconds under a key; measured and written if there are none, or if the entry is too old or doubtful.

    Args:
        key: the problem, in words that say everything that decides its times.
        measure: measures the seconds.
        bound: seconds; a longer time is doubtful.
        names: the names that the entry must have; None: any.
    """
    repeats = torch.are_deterministic_algorithms_enabled()
    kept = _loaded.get(key) if repeats else None
    if kept is None or not _has(kept, names):
        entry = entries().get(key)
        if entry is None or not _has(entry["seconds"], names) or (not repeats and _is_old(entry)):
            entry = _measure_again({"seconds": {}, "tries": 0}, measure, bound)
        elif not repeats and entry["doubtful"] and entry["tries"] < TRIES and key not in _used:
            entry = _measure_again(entry, measure, bound)
        if entries().get(key) is not entry:
            _store(key, entry)
        kept = entry["seconds"]
    _used[key] = kept
    return kept


def _has(seconds: Times, names: Collection[str] | None) -> bool:
    return names is None or set(seconds) == set(names)


def _is_old(entry: dict[str, Any]) -> bool:
    return not 0 <= time.time() - entry["when"] < DAYS * 24 * 3600


def _measure_again(entry: dict[str, Any], measure: Callable[[], Times], bound: float) -> dict[str, Any]:
    """An entry with the minimum of its times and of new times."""
    seconds, tries = entry["seconds"], entry["tries"]
    for attempt in range(AT_ONCE):
        if attempt:
            time.sleep(PAUSE)
        with doing("timing products"):
            found = measure()
        seconds = {name: min(second, seconds.get(name, math.inf)) for name, second in found.items()}
        tries += 1
        if max(seconds.values()) <= bound:
            break
    return {"seconds": seconds, "when": time.time(), "tries": tries, "doubtful": max(seconds.values()) > bound}


def of_model(belongs: Callable[[list[Any]], bool]) -> dict[str, Any]:
    """The times that a checkpoint holds: those that this process used, and those in the file of a model's products.

    Args:
        belongs: whether a key, parsed, is a product of the model.
    """
    parsed = {key: _parsed(key) for key in entries()}
    own = {key: entries()[key]["seconds"] for key, problem in parsed.items() if problem and belongs(problem)}
    return {"machine": machine(), "seconds": own | _used}


def use(times: Any) -> None:
    """Use the times of a checkpoint from now on, if they are of this machine: see the head of this file."""
    if not isinstance(times, dict) or times.get("machine") != machine():
        return
    seconds = times.get("seconds")
    if isinstance(seconds, dict) and all(map(_are_seconds, seconds.values())):
        _loaded.clear()
        _loaded.update(seconds)


def _are_seconds(times: Any) -> bool:
    """Whether a checkpoint, which may hold anything, has times by name."""
    return isinstance(times, dict) and bool(times) and all(map(_is_second, times.values()))


def loaded() -> str:
    """What identifies the times of a checkpoint, if they decide; "" if they do not."""
    return json.dumps(_loaded, sort_keys=True) if torch.are_deterministic_algorithms_enabled() and _loaded else ""


def clear() -> int:
    """Forget all times, on disk and in this process; the next use measures again.

    Returns:
        The number of times that the file had.
    """
    path = _path()
    known = sum(len(own) for own in _read(path).values())
    path.unlink(missing_ok=True)
    if known:  # Inductor keeps graphs in which kernels are chosen; it must not find them again
        path.with_name("cleared").write_text(f"{time.time_ns()}\n")
    for memory in (_read_files, _used, _loaded):
        memory.clear()
    return known


def generation() -> str:
    """What identifies the times since they were last cleared; "" if they never were."""
    try:
        return _path().with_name("cleared").read_text().strip()
    except OSError:
        return ""


def entries() -> Entries:
    """The entries of this machine."""
    path = _path()
    if path not in _read_files:
        _read_files[path] = _read(path)
    return _read_files[path].setdefault(machine(), {})


def _store(key: str, entry: dict[str, Any]) -> None:
    """Store an entry. Several processes may write, so the file is read again and replaced in one step."""
    entries()[key] = entry
    path = _path()
    merged = _read(path)
    merged.setdefault(machine(), {}).update(entries())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(json.dumps(merged).encode())
    except OSError:
        return  # the folder cannot be written to: only this process remembers the measurement


def folder() -> Path:
    """The folder of the file; it may not exist yet."""
    path = Path(os.environ.get("TOPKAST_CACHE", "~/.cache/topkast"))
    try:
        return path.expanduser()
    except RuntimeError:  # the user has no home: no file can be in a folder of this name
        return Path("/nonexistent/topkast")


def _path() -> Path:
    return folder() / "times.json"


def _read(path: Path) -> dict[str, Entries]:
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):  # no file yet, or an incomplete file: measure again
        return {}
    if not isinstance(found, dict):
        return {}
    own = {name: entries for name, entries in found.items() if isinstance(entries, dict)}
    return {name: {key: one for key, one in entries.items() if _is_entry(one)} for name, entries in own.items()}


def _parsed(key: str) -> list[Any] | None:
    """The problem that a key stands for; None if the key is no list in JSON, as in a file that somebody has changed."""
    try:
        found = json.loads(key)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _is_entry(one: Any) -> bool:
    fits = isinstance(one, dict) and _are_seconds(one.get("seconds")) and type(one.get("tries")) is int
    return fits and _is_second(one.get("when")) and type(one.get("doubtful")) is bool


def _is_second(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


@functools.cache
def machine() -> str:
    """The processors and versions that a measurement is valid for."""
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    lib = native_library.library()
    digest = hashlib.blake2b(Path(lib._name).read_bytes(), digest_size=8).hexdigest() if lib else "none"
    gpus = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    cpu = f"{model} x{os.cpu_count()}, torch {torch.__version__}, kernels {digest}, {native_library.isa()}"
    return ", ".join([cpu, *sorted(gpus)])
