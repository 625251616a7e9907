"""How long a step of a run takes with the real kernels, beside the compiled dense model, in pairs.

Seconds are the CPU's, of one thread: on an idle machine they are those of the clock on the wall, and on one that others
use too they do not hold the others' time.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.state.model import sites
from topkast.tools.common.measure import memory
from topkast.tools.common.pairs import SPREAD, measure, show
from topkast.tools.common.results import CONSOLE, machine
from topkast.tools.study.tasks import task_of
from topkast.tools.study.train import make_optimizer, prepare, train_step

from .grid import Point
from .models import ByteModel
from .run_fields import BASELINES, Run, canonical
from .times import UNMEASURED, add_time, key_of, read_times

STEPS = 10**6  # of the run that is measured: no refresh comes due by itself
PARTS = 5  # of gradual pruning, measured one by one


def measure_grid(points: Sequence[Point], path: Path, repeats: int, backend: str, data: Path | None) -> None:
    """Measure what ``path`` does not hold yet and add it there, on one thread."""
    torch.set_num_threads(1)
    facts = machine() | {"backend": backend, "threads": 1}
    wanted = {key_of(p.run): p.run for p in points if times_differ(p.run)}
    todo = [run for key, run in wanted.items() if key not in read_times(path).entries]
    for number, run in enumerate(todo, 1):
        entry = measure_run(run, repeats, backend, data)
        add_time(path, run, entry, facts)
        sets = "" if run.fwd is None else f" {run.fwd}" + ("" if run.bwd is None else f"/{run.bwd}")
        CONSOLE.print(
            f"{number} of {len(todo)}: {run.task}, {run.method}{sets}, {run.block}: {show(entry['ratio'])}, "
            f"a refresh {1e3 * entry['refresh']:.1f} ms, a dense step {1e3 * entry['seconds']['dense']:.1f} ms",
            highlight=False,
        )


def times_differ(run: Run) -> bool:
    """Whether a step of the run is to be measured: not the dense model's own, nor what runs dense here."""
    return run.timed and run.method not in UNMEASURED and (run.method != "dense" or run.width is not None)


# Beyond its limit Dynamo would go on uncompiled, and the figure would be of something else.
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def measure_run(run: Run, repeats: int, backend: str, data: Path | None = None) -> dict[str, Any]:
    """Step time of ``run`` over that of the dense model.

    Returns:
        ratio: quartiles over the pairs; where the sets grow smaller in the course of a run, its mean over the course.
        seconds: medians of a step, "dense" and "sparse".
        refresh: seconds that a refresh adds to its step, 0 for a method without.
        bytes: of what training keeps from step to step.
        file, latency: of a text model, see :func:`exported`.
    """
    torch._dynamo.reset()
    task = task_of(run.task)
    batch = task.batch(task.load(data), torch.Generator().manual_seed(0), run.batch)
    run = replace(run, steps=STEPS, backend=backend, refresh_every=run.refresh_every and STEPS)
    twin = canonical(replace(run, method="dense", width=None, lr_rest=None))
    (dense, base, _), (step, model, optimizer) = (_stepper(each, batch, backend) for each in (twin, run))
    found = []
    for place, share in course(run):
        if run.method not in BASELINES:
            _move(model, round(place * STEPS))
        pairs = measure([dense], [step], repeats, clock=time.process_time)
        found.append((share, pairs.ratio(), pairs.seconds()))
    return {
        "ratio": {name: sum(share * ratio[name] for share, ratio, _ in found) for name in SPREAD},
        "seconds": {side: sum(share * seconds[side] for share, _, seconds in found) for side in ("dense", "sparse")},
        "refresh": _refresh(step, model, repeats) if run.refresh_every else 0.0,
        "bytes": memory(model, optimizer)["total"],
        **(exported(base, model, run.method, batch[0][:1], repeats) if isinstance(model, ByteModel) else {}),
    }


def exported(base: nn.Module, model: nn.Module, method: str, x: Tensor, repeats: int) -> dict[str, float]:
    """The ONNX file of ``model`` over that of ``base``: "file", its bytes; "latency", its time on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        files, runs = [], []
        for number, (one, kind) in enumerate(((base, "dense"), (model, method))):
            files.append(Path(folder) / f"{number}.onnx")
            if kind not in BASELINES:
                topkast.export(one.eval(), files[-1], (x,))
            else:
                plain = copy.deepcopy(one).eval()  # a copy is not compiled
                torch.onnx.export(plain, (x,), files[-1], dynamo=True, verbose=False, external_data=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = topkast.onnx.session(files[-1], sess_options=options)
            runs.append(partial(session.run, None, {session.get_inputs()[0].name: x.numpy()}))
        pairs = measure([runs[0]], [runs[1]], repeats, clock=time.process_time)
        sizes = [file.stat().st_size for file in files]
    return {"file": sizes[1] / sizes[0], "latency": pairs.ratio()["median"]}


def course(run: Run) -> list[tuple[float, float]]:
    """(place, share): where in a run, as shares of its steps, a step is measured, and for which share it stands."""
    stop = run.stop_exploring_after
    if run.method == "gmp":
        assert stop is not None
        return [(stop * (i + 0.5) / PARTS, stop / PARTS) for i in range(PARTS)] + [(1.0, 1 - stop)] * (stop < 1)
    if run.method == "topkast" and stop is not None and run.bwd != run.fwd:
        return [(0.0, stop), (1.0, 1 - stop)]
    return [(0.0, 1.0)]


def _stepper(run: Run, batch: tuple[Tensor, Tensor], backend: str) -> tuple[Callable[[], object], nn.Module, Any]:
    """A training step of the run's model on a fixed batch, compiled; the model; and its optimizer."""
    model = prepare(run, task_of(run.task)).train()
    if run.method in BASELINES:
        model.compile(backend=backend)
    optimizer = make_optimizer(run, model)
    return partial(train_step, model, optimizer, *batch), model, optimizer


def _move(model: nn.Module, step: int) -> None:
    """To that step of the run, with the sets that belong there."""
    for site in sites(model).values():
        site.step = step
    topkast.refresh(model)


def _refresh(step: Callable[[], object], model: nn.Module, repeats: int) -> float:
    """Seconds that a step with a refresh takes longer than one without, the median of pairs."""

    def due() -> None:
        for site in sites(model).values():
            site.refreshed_at = -2 * STEPS

    _move(model, 0)
    pairs = measure([step], [due, step], repeats, clock=time.process_time)
    more = [with_it[1] - without[0] for without, with_it in zip(pairs.dense, pairs.sparse, strict=True)]
    return max(0.0, statistics.median(more))
