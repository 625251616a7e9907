"""Results as compressed JSON lines, a finished run a line, and the pool that fills them: nothing is run twice."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import track

from .run_fields import Run, StudyError, canonical

Results = dict[str, dict[str, Any]]  # key of the run -> its result


def read(path: Path) -> Results:
    """What the gzip file ``path`` holds, nothing if it is not there.

    Raises:
        StudyError: the file is not whole, or a line is no run of this study.
    """
    found = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line)
            found[canonical(Run(**entry["run"])).key] = entry["result"]
        except (ValueError, KeyError, TypeError, StudyError) as error:
            raise StudyError(f"{path}: line {number} is not a run of this study: {error}") from error
    return found


def add(path: Path, run: Run, result: dict[str, Any]) -> None:
    """Add a run to the file; a process that is stopped meanwhile leaves the old file, whole."""
    lines = [*_lines(path), json.dumps({"run": asdict(run), "result": result})]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    os.replace(new, path)


def _lines(path: Path) -> list[str]:
    try:
        return gzip.decompress(path.read_bytes()).decode().splitlines() if path.exists() else []
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: no whole gzip file of results: {error}") from error


def _outcome(run: Run, data: Path | None) -> tuple[Run, dict[str, Any] | Exception]:
    """The run with its result, or with the exception that it ended in."""
    from .train import train  # imports this package's models, which reading results does not need

    torch.set_num_threads(1)
    try:
        return run, train(run, data)
    except Exception as error:
        return run, error


def complete(runs: Sequence[Run], path: Path, workers: int, data: Path | None, console: Console) -> list[str]:
    """Run what ``path`` does not hold yet and add it there; one thread a run.

    Returns:
        What went wrong, a line for each failed run; those are run again the next time.
    """
    held = read(path)
    todo = [run for run in dict.fromkeys(runs) if run.key not in held]
    ended = Parallel(workers, return_as="generator_unordered")(delayed(_outcome)(run, data) for run in todo)
    failed = []
    for run, result in track(ended, path.name, len(todo), console=console):
        if isinstance(result, StudyError):
            raise result  # no other run of that task would fare better
        if isinstance(result, Exception):
            failed.append(f"{run.task}, {run.method}, seed {run.seed}: {type(result).__name__}: {result}")
        else:
            add(path, run, result)
    return failed
