"""Run entries, one process each, with a limit of time and of memory; the file of results is whole after every model."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from topkast.tools.common.places import ROOT
from topkast.tools.common.results import CONSOLE

from .model_entry import Entry

Key = tuple[str, ...]  # suite and name; and the kernel, unless it is "dense"
PATIENCE = 20  # clock seconds for one of computing, before a model is given up that may wait for ever


def state_of_the_code() -> str:
    """A digest of what a record depends on: the sources of compiler, passes and runtime."""
    digest = hashlib.sha256()
    files = [file for part in ("compiler", "passes", "runtime") for file in (ROOT / part).rglob("*")]
    kinds = (".py", ".cpp", ".h", ".inl", ".json")
    for file in sorted(file for file in files if file.suffix in kinds):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def versions(suite: str) -> dict[str, str]:
    """Of the code, of torch, and of the package that a suite is named after."""
    package = suite.split()[0]
    names = ("torch", *(() if package == "torch.nn" else (package,)))
    found = {"code": state_of_the_code()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a suite of the tests
            continue
    return {**found, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def key(suite: str, name: str, kernel: str = "dense") -> Key:
    """What a record is found by."""
    return (suite, name) if kernel == "dense" else (suite, name, kernel)


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Records by :func:`key`; none where there is no file."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return {key(row["suite"], row["name"], row.get("kernel", "dense")): row for row in rows}


def write(path: Path, records: dict[Key, dict[str, Any]]) -> None:
    """A JSON list with one record a line, in place of the old one at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(records[key], ensure_ascii=False) for key in sorted(records))
    new = path.with_suffix(".new")
    new.write_text(f"[\n{lines}\n]\n")
    os.replace(new, path)


def _child(entry: Entry, stages: tuple[str, ...], gigabytes: float, seconds: float, sender: Connection) -> None:
    """In a process of its own: what it prints is nobody's business, what it finds goes through the pipe."""
    from .stages import check

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.environ["TOPKAST_KERNEL"] = entry.kernel
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # Its own time, not the clock's: on a busy machine a sweep would lose its largest models.
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
    check(entry, sender.send, stages)


class Running:
    """One model's process and its record so far."""

    def __init__(self, entry: Entry, stages: tuple[str, ...], gigabytes: float, seconds: float) -> None:
        # Forked: the packages are imported once, in the parent.
        context = multiprocessing.get_context("fork")
        self.entry, self.start, self.limit = entry, time.monotonic(), seconds
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_child, args=(entry, stages, gigabytes, seconds, sender), daemon=True)
        self.process.start()
        sender.close()
        self.record: dict[str, Any] = {"suite": entry.suite, "name": entry.name, "family": entry.family, "seconds": {}}
        if entry.kernel != "dense":
            self.record["kernel"] = entry.kernel

    def take(self) -> bool:
        """Read what has come; whether the process is over."""
        try:
            while self.receiver.poll():
                found = self.receiver.recv()
                self.record["seconds"].update(found.pop("seconds", {}))
                self.record.update(found)
        except EOFError:
            self.process.join()
            if self.process.exitcode:
                spent = self.process.exitcode == -signal.SIGXCPU
                why = f"stopped after {self.limit:.0f} s" if spent else f"exit code {self.process.exitcode}"
                self.record["died"] = why
            return True
        if time.monotonic() - self.start > PATIENCE * self.limit:
            self.process.kill()
            self.process.join()
            self.record["died"] = f"waited for something, {PATIENCE * self.limit:.0f} s"
            return True
        return False


def run(
    entries: Iterable[Entry], path: Path, *, stages: tuple[str, ...], jobs: int, seconds: float, gigabytes: float
) -> dict[Key, dict[str, Any]]:
    """Run what has no record yet, and return all records.

    Args:
        entries: the models.
        path: of the results.
        stages: see :mod:`topkast.tools.zoo.stages`.
        jobs: processes at a time.
        seconds, gigabytes: limits of each; seconds are of its own computing.
    """
    records, known = read(path), dict[str, dict[str, str]]()
    waiting = [entry for entry in entries if key(entry.suite, entry.name, entry.kernel) not in records]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn by hand: a thread that draws would be lost in the fork.
    with Progress(*columns, console=CONSOLE, auto_refresh=False) as bar:
        task = bar.add_task("", total=len(waiting))
        busy: list[Running] = []
        while waiting or busy:
            while waiting and len(busy) < jobs:
                busy.append(Running(waiting.pop(0), stages, gigabytes, seconds))
            bar.update(task, description=", ".join(one.entry.name for one in busy), refresh=True)
            wait([one.receiver for one in busy], timeout=1.0)
            for one in [one for one in busy if one.take()]:
                busy.remove(one)
                one.record["total"] = round(time.monotonic() - one.start, 1)
                one.record["versions"] = known.setdefault(one.entry.suite, versions(one.entry.suite))
                records[key(one.entry.suite, one.entry.name, one.entry.kernel)] = one.record
                write(path, records)
                bar.advance(task)
    return records
