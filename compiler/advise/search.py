"""``topkast.advise``: try settings on the user's own model and loop, and compare their losses and costs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from topkast.compiler.backend import BACKEND, check_backend
from topkast.compiler.config import OPTIONS, Config, pair
from topkast.compiler.convert.check import check_model
from topkast.compiler.options import block_shape, number
from topkast.runtime.errors import ConfigError
from topkast.runtime.extras import need

from .advice import Advice, Trial
from .trial import MakeOptimizer, Runner, StepFn, Timed

Setting = dict[str, Any]
FACTORS = ("block", "bwd", "refresh_every")  # in the order in which they are decided


def advise(
    model: nn.Module,
    step_fn: StepFn,
    fwd: float = Config.fwd,
    budget: float = 300.0,
    *,
    optimizer: MakeOptimizer | None = None,
    block: Sequence[tuple[int, int]] = ((1, 1), (16, 1), (32, 32)),
    bwd: Sequence[float] | None = None,
    refresh_every: Sequence[int] = (10, 50),
    steps: int = 100,
    repeats: int = 3,
    seed: int = 0,
    backend: str = BACKEND.default,
    **options: Any,
) -> Advice:
    """Choose the block, the backward sparsity and the refresh interval for a model, by short runs of its own loop.

    The factors are decided one after the other: block, ``bwd``, ``refresh_every``. Meanwhile the other factors stay
    fixed. A value is a candidate if its loss does not differ from the best loss (the 95 % interval of the paired
    differences contains 0); the fastest candidate is chosen. All repeats start from the model's weights and each repeat
    uses other batches; all settings use the same batches. Losses come from eager runs. Times come from compiled steps,
    in interleaved pairs with the dense model.

    Args:
        model: the plain model, as for :func:`topkast.compile`. The model is never changed: every run uses a deep copy.
        step_fn: called as ``step_fn(model, optimizer, step)``. The function does one complete training step (forward,
            backward, ``optimizer.step()``, ``optimizer.zero_grad()``) on the batch of that number, and returns the
            loss: a number or a tensor of one element. The same ``step`` must mean the same batch; otherwise the
            comparison is not paired and its interval is wide.
        fwd: the forward sparsity, which is not varied.
        budget: seconds after which no further run begins; the advice says what was not tried. One run of the dense
            model and one run of the first setting always happen.
        optimizer: a function that makes an optimizer from an iterable of parameters. None:
            ``AdamW(parameters, lr=1e-3)``.
        block: blocks to choose from; the search starts with the first.
        bwd: backward sparsities to choose from. None: twice the forward density, the same as ``fwd`` (no exploration)
            and five times the forward density.
        refresh_every: intervals to choose from, each at most half of ``steps``, because a run would not show the effect
            of a longer interval.
        steps: the number of steps of each run.
        repeats: the number of runs of each setting, at least 2.
        seed: the seed of torch's generators in every run. The same seed gives the same losses, but not the same times.
        backend: the backend whose steps are timed, as for :func:`topkast.compile`; "eager" times no kernel.
        options: further arguments of :func:`topkast.compile`, the same for all settings, such as ``exclude``.

    Raises:
        ConfigError: an argument has a value that is not allowed, or step_fn does not do a step as described.
        MissingPackageError: the extra ``topkast[statistics]`` (scipy) is not installed.
        ModelError: the model cannot be converted.
    """
    need("statistics", "topkast.advise")
    check_model(model)
    check_backend(backend, {})
    start = _start(fwd, block, bwd, refresh_every, steps, repeats, options)
    if not (isinstance(budget, (int, float)) and budget > 0):
        raise ConfigError(f"budget={budget!r}: must be a number of seconds above 0")
    make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    runner = Runner(model, step_fn, make, steps, seed, backend, options)
    return _Search(runner, start, repeats, time.monotonic() + budget).run(fwd, options)


def _start(
    fwd: float, block: Any, bwd: Any, refresh_every: Any, steps: int, repeats: int, options: dict[str, Any]
) -> dict[str, list[Any]]:
    """The checked values of each factor; the search begins with the first value of each."""
    for name, value, low in (("steps", steps, 2), ("repeats", repeats, 2)):
        if type(value) is not int or value < low:
            raise ConfigError(f"{name}={value!r}: must be a whole number, at least {low}")
    if bwd is None:
        bwd = [pair("", fwd, None)[1], fwd, max(0.0, round(1 - 5 * (1 - fwd), 12))]
    for name, value in (("block", block), ("bwd", bwd), ("refresh_every", refresh_every)):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name}={value!r}: must be a list of the values to try")
    for one in block:
        block_shape("block: each value of the list, here block", one)
    for name, value in (("bwd", bwd), ("refresh_every", refresh_every)):
        for one in value:
            number(0)(f"{name}: each value of the list, here {name}", one)
    found = {"block": [tuple(b) for b in block], "bwd": list(bwd), "refresh_every": list(refresh_every)}
    for name, values in found.items():
        if not values:
            raise ConfigError(f"{name}: must name at least one value")
        found[name] = list(dict.fromkeys(values))
        for value in found[name]:
            Config(fwd, **{"bwd": None, name: value})
    late = [every for every in found["refresh_every"] if every > steps // 2]
    if late:
        raise ConfigError(f"refresh_every={late}: more than half of steps={steps}, too long to be seen at work")
    unknown = sorted(set(options) - ({one.name for one in OPTIONS} - {"fwd", *FACTORS, "init", "device"}))
    if unknown:
        raise ConfigError(f"unknown arguments {', '.join(unknown)}")
    return found


class _Search:
    def __init__(self, runner: Runner, values: dict[str, list[Any]], repeats: int, deadline: float) -> None:
        self.runner, self.values, self.repeats, self.deadline = runner, values, repeats, deadline
        self.losses: dict[tuple[Any, ...] | None, list[float]] = {}  # by setting, None for the dense model
        self.timed: dict[tuple[Any, ...], Timed] = {}  # by block and bwd
        self.skipped: list[str] = []

    def run(self, fwd: float, options: dict[str, Any]) -> Advice:
        chosen: Setting = {"fwd": fwd, **{name: values[0] for name, values in self.values.items()}}
        why = []
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            settings = 2 + sum(len(values) - 1 for values in self.values.values())
            timings = len(self.values["block"]) + len(self.values["bwd"]) - 1
            self.tick = _Ticker(bar, settings * self.repeats + timings)
            self._run(None, chosen)
            for name in FACTORS:
                chosen[name], reason = self._decide(name, chosen)
                why.append(reason)
        return Advice(
            kwargs={**chosen, **options},
            trials=[self._trial(key) for key in self.losses if key is not None],
            dense_losses=self.losses[None],
            dense_seconds=statistics.median(t.dense_seconds for t in self.timed.values()) if self.timed else None,
            dense_bytes=next((t.dense_bytes for t in self.timed.values()), None),
            why=why,
            limits=self._limits(),
        )

    def _decide(self, name: str, held: Setting) -> tuple[Any, str]:
        settings = [{**held, name: value} for value in self.values[name]]
        for setting in settings:
            self._run(_key(setting), setting)
        for setting in settings:
            self._time(setting)
        whole = [s for s in settings if len(self.losses.get(_key(s), ())) == self.repeats]
        if len(whole) < 2:
            return held[name], f"{name}={held[name]!r}: not chosen, there was nothing to compare it with"
        best = min(whole, key=self._mean)
        if not math.isfinite(self._mean(best)):
            return held[name], f"{name}={held[name]!r}: every value diverged; the learning rate is too high"
        equal = [s for s in whole if s is best or self._as_good(s, best)]
        fast = [s for s in equal if self._seconds(s) is not None]
        taken = min(fast, key=lambda s: (self._seconds(s), self._mean(s))) if fast else best
        others = ", ".join(f"{s[name]!r}" for s in whole if s not in equal)
        reason = f"{name}={taken[name]!r}: " + (
            "the lowest loss" if taken is best else f"the loss does not differ from the best, {best[name]!r}'s, and it"
        )
        if taken is not best:
            reason += " is faster"
        elif len(equal) > 1 and fast:
            reason += " and the fastest of those that do not differ from it"
        return taken[name], reason + (f"; clearly worse: {others}" if others else "")

    def _run(self, key: tuple[Any, ...] | None, setting: Setting) -> None:
        """Run all missing repeats until the time is over. The first repeats of dense and of the start always run."""
        done = self.losses.get(key, [])
        for repeat in range(len(done), self.repeats):
            # All settings are compared with dense and with the start, so a repeat that these two lack has no use.
            if time.monotonic() > self.deadline and not (repeat == 0 and len(self.losses) < 2):
                self.skipped.append(f"{_words(key)}: {self.repeats - repeat} of {self.repeats} runs")
                break
            self.tick(f"training, {_words(key)}")
            done.append(self.runner.loss(repeat, None if key is None else setting))
            self.losses[key] = done

    def _time(self, setting: Setting) -> None:
        key = _key(setting)[:2]
        if key in self.timed or _key(setting) not in self.losses:
            return
        if time.monotonic() > self.deadline:
            self.skipped.append(f"{_words(_key(setting))}: its time")
            return
        self.tick(f"timing, {_words(_key(setting))}")
        self.timed[key] = self.runner.time(setting)

    def _mean(self, setting: Setting) -> float:
        return statistics.fmean(self.losses[_key(setting)])

    def _as_good(self, one: Setting, best: Setting) -> bool:
        found = _difference(self.losses[_key(one)], self.losses[_key(best)])
        return found is not None and found[0] <= found[1]

    def _seconds(self, setting: Setting) -> float | None:
        timed = self.timed.get(_key(setting)[:2])
        return None if timed is None else timed.seconds + timed.refresh_seconds / setting["refresh_every"]

    def _trial(self, key: tuple[Any, ...]) -> Trial:
        block, bwd, every = key
        trial = Trial(bwd, block, every, self.losses[key], _difference(self.losses[key], self.losses[None]))
        timed = self.timed.get(key[:2])
        if timed is None:
            return trial
        seconds = timed.seconds + timed.refresh_seconds / every
        return replace(
            trial, seconds=seconds, ratio=timed.ratio, refresh_seconds=timed.refresh_seconds, bytes=timed.bytes
        )

    def _limits(self) -> list[str]:
        runner, longest = self.runner, max(self.values["refresh_every"])
        found = [
            f"where a run of more than {runner.steps} steps ends: early losses need not rank as final ones do",
            "how the factors act together: each was varied with the others held",
            f"other first weights than the model's own; intervals are over {self.repeats} runs on different batches",
            f"intervals above {longest} steps, other learning rates, and what regularises late",
        ]
        if runner.backend == "eager":
            found.append("the speed of kernels: backend='eager' computes with dense products")
        return found + [f"for want of time, {what}" for what in self.skipped]


class _Ticker:
    def __init__(self, bar: Progress, total: int) -> None:
        self.bar, self.task, self.count = bar, bar.add_task("", total=total), -1

    def __call__(self, what: str) -> None:
        self.count += 1
        self.bar.update(self.task, completed=self.count, description=what)


def _key(setting: Setting) -> tuple[Any, ...]:
    return tuple(setting[name] for name in FACTORS)


def _words(key: tuple[Any, ...] | None) -> str:
    return "dense" if key is None else f"block {key[0][0]}x{key[0][1]}, bwd {key[1]:g}, every {key[2]}"


def _difference(one: list[float], two: list[float]) -> tuple[float, float] | None:
    """Mean of the paired differences and half of its 95 % interval; None without two pairs of numbers."""
    from scipy.special import stdtrit  # scipy takes a while to import

    pairs = [a - b for a, b in zip(one, two, strict=False)]
    if len(pairs) < 2 or not all(map(math.isfinite, pairs)):
        return None
    t = float(stdtrit(len(pairs) - 1, 0.975))
    return statistics.fmean(pairs), t * statistics.stdev(pairs) / math.sqrt(len(pairs))
