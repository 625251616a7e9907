"""Results as JSON lines, one finished run a line, and the pool that fills them; what is there is not run again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .run_fields import Run, StudyError, canonical

Results = dict[str, dict[str, Any]]  # key of the run -> its result


def read(path: Path) -> Results:
    """What a file holds; a last line that was cut off is left out, a broken one before it is a StudyError."""
    if not path.exists():
        return {}
    found, lines = {}, path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found[canonical(Run(**entry["run"])).key] = entry["result"]
        except (json.JSONDecodeError, KeyError, TypeError, StudyError) as error:
            if number == len(lines):
                continue
            raise StudyError(f"{path}: line {number} is not a run of this study: {error}") from error
    return found


def _append(path: Path, run: Run, result: dict[str, Any]) -> None:
    if path.exists():  # what a stopped process left of a line goes
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    with path.open("a") as file:
        file.write(json.dumps({"run": asdict(run), "result": result}) + "\n")


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)


def _train(run: Run, data: Path | None) -> dict[str, Any]:
    from topkast.tools.study.train import train

    return train(run, data)


def _results(runs: Sequence[Run], workers: int, data: Path | None) -> Iterator[tuple[Run, Any]]:
    """Each run with its result or the exception it ended in, as they come."""
    if workers == 1:
        _prepare(1)
        for run in runs:
            try:
                yield run, _train(run, data)
            except Exception as error:
                yield run, error
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_prepare, initargs=(1,)) as pool:
        waiting = {pool.submit(_train, run, data): run for run in runs}
        for done in as_completed(waiting):
            yield waiting[done], done.exception() or done.result()


def complete(runs: Sequence[Run], path: Path, workers: int, data: Path | None, console: Console) -> list[str]:
    """Run what ``path`` does not hold yet and add it there; one thread a run.

    Returns:
        What went wrong, a line for each failed run; those are run again the next time.
    """
    held = read(path)
    todo = [run for run in dict.fromkeys(runs) if run.key not in held]
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    failed = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(path.stem, total=len(todo))
        for run, result in _results(todo, workers, data):
            if isinstance(result, StudyError):
                raise result  # no other run of that task would fare better
            if isinstance(result, Exception):
                failed.append(f"{run.task}, {run.method}, seed {run.seed}: {type(result).__name__}: {result}")
            else:
                _append(path, run, result)
            progress.advance(bar)
    return failed
