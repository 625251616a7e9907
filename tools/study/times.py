"""Measured step times of the real kernels: the file that holds them, and what a run takes by them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .run_fields import Run, StudyError

# What decides how long a step takes, and how long one with a refresh.
DECIDES = (
    "task", "batch", "method", "fwd", "bwd", "block", "distribution", "explore", "stop_exploring_after", "optimizer",
    "balanced",
)  # fmt: skip
SAME = {"static-magnitude": "static"}  # other sets, the same work
UNMEASURED = ("meprop", "swat")  # references that run dense here
MACHINE = ("cpu", "torch", "backend", "threads")  # what times must have in common to be compared


def key_of(run: Run) -> str:
    """Names what is measured for a run."""
    run = replace(run, method=SAME.get(run.method, run.method))
    decides = [getattr(run, name) for name in DECIDES]
    return json.dumps(decides if run.width is None else [*decides, run.width])  # the task's own width goes unsaid


@dataclass
class Times:
    """Measured times.

    Args:
        machine: where, empty if nothing was measured.
        entries: :func:`key_of` a run -> "ratio" (quartiles of a step's time over that of compiled dense), "seconds"
            (median of either), "refresh" (seconds that a step with a refresh takes longer) and "bytes" (what training
            keeps from step to step; old files lack it); if it was exported also "file" and "latency", its ONNX file's
            size and time in ONNX Runtime over those of the dense one.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ratio(self, run: Run) -> float | None:
        """Time of a step, with its share of the refreshes, over that of a dense step; None where not measured."""
        if run.method == "dense" and run.width is None:
            return 1.0
        entry = self.entries.get(key_of(run))
        if entry is None or not run.timed:
            return None
        exploring = 1.0 if run.stop_exploring_after is None else run.stop_exploring_after
        refreshes = 0.0 if run.refresh_every is None else exploring / run.refresh_every
        return entry["ratio"]["median"] + refreshes * entry["refresh"] / entry["seconds"]["dense"]

    def costs(self, run: Run) -> dict[str, float]:
        """As far as they were measured: "time", the seconds of the whole run (steps x ratio x a dense step), "bytes",
        and "file" and "latency" as shares of the dense model's."""
        dense = [
            entry["seconds"]["dense"]
            for key, entry in self.entries.items()
            if all(
                json.loads(key)[DECIDES.index(name)] == getattr(run, name) for name in ("task", "batch", "optimizer")
            )
        ]
        ratio, found = self.ratio(run), {"file": 1.0, "latency": 1.0}
        if run.method != "dense" or run.width is not None:
            entry = self.entries.get(key_of(run), {})
            found = {name: entry[name] for name in ("bytes", "file", "latency") if name in entry}
        return found | ({} if ratio is None or not dense else {"time": run.steps * ratio * statistics.median(dense)})

    def steps_in(self, run: Run, dense_steps: int) -> int:
        """Steps of ``run`` in the time of so many dense ones, to the nearest ten.

        Raises:
            StudyError: its time was not measured.
        """
        ratio = self.ratio(run)
        if ratio is None:
            what = "runs dense, so it has none" if run.method in UNMEASURED else "`study.py time GRID` measures it"
            raise StudyError(f"equal='time': no measured time of {run.task}, {run.method}, {run.block}: {what}")
        return max(10, round(dense_steps / ratio / 10) * 10)


def read_times(path: Path) -> Times:
    """What the file holds; nothing if it is not there, StudyError if it is something else."""
    if not path.exists():
        return Times()
    try:
        held = json.loads(path.read_text())
        return Times(held["machine"], {json.dumps(entry.pop("of")): entry for entry in held["times"]})
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: no file of measured times: {error}") from error


def times_of(grid: str, path: Path) -> Times:
    """The times of a grid: its own file beside ``path``, of the machine that measured it, or else ``path``."""
    own = path.with_name(f"{grid}-times.json")
    return read_times(own if own.exists() else path)


def add_time(path: Path, run: Run, entry: dict[str, Any], machine: dict[str, Any]) -> None:
    """Add what was measured for a run.

    Raises:
        StudyError: the file's times come from another machine, torch or backend; they do not compare.
    """
    times = read_times(path)
    for name in MACHINE:
        if times.machine and times.machine.get(name) != machine[name]:
            before = times.machine.get(name)
            raise StudyError(
                f"{path}: its times are of {name} {before!r}, these of {machine[name]!r}: use another file"
            )
    times.entries[key_of(run)] = entry
    lines = [json.dumps({"of": json.loads(key)} | held) for key, held in times.entries.items()]
    facts = json.dumps(machine, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"machine": {facts},\n"of": {json.dumps(DECIDES)},\n"times": [\n' + ",\n".join(lines) + "\n]}\n")
