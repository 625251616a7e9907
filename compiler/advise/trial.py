"""Short training runs on copies of a model: their losses and the times of their steps."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from topkast.compiler.capture.trace import compiled, forget
from topkast.compiler.compile import compile, refresh
from topkast.compiler.convert.sparsify import sparsify
from topkast.compiler.report.cost import count_model_bytes
from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import sites

StepFn = Callable[[nn.Module, torch.optim.Optimizer, int], Any]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
WARMUP, PAIRS = 3, 15  # steps of dense and of sparse each: first to compile, then to time


@dataclass(frozen=True)
class Timed:
    """Seconds of a dense and a sparse step, quartiles of their ratio, seconds of a refresh, bytes of both models."""

    seconds: float
    dense_seconds: float
    ratio: tuple[float, float, float]
    refresh_seconds: float
    bytes: int
    dense_bytes: int


@dataclass
class Runner:
    """The user's model and loop. No run changes the model or the state of the random generators."""

    model: nn.Module
    step_fn: StepFn
    optimizer: MakeOptimizer
    steps: int
    seed: int
    backend: str
    options: dict[str, Any]  # further arguments of topkast.compile, the same in all runs
    compiled: set[int] = field(default_factory=compiled)  # the user's own code in Dynamo's cache

    def loss(self, repeat: int, setting: dict[str, Any] | None) -> float:
        """Mean loss over the last third of a run on the repeat's own batches; infinity if the mean is not finite.

        The run is eager: every backend gives the same values up to rounding, and nothing must be compiled. ``setting``
        None is the dense model.
        """
        twin = copy.deepcopy(self.model)
        if setting is not None:
            sparsify(twin, **setting, **self.options)
        with self._alone(repeat):
            losses = self._train(twin, range(repeat * self.steps, (repeat + 1) * self.steps))
        tail = losses[-max(1, self.steps // 3) :]
        return statistics.fmean(tail) if all(map(math.isfinite, tail)) else math.inf

    def _alone(self, repeat: int) -> Any:
        return own_randomness(self.model, self.seed + repeat)

    def _train(self, twin: nn.Module, steps: range) -> list[float]:
        optimizer = self.optimizer(twin.parameters())
        before = {p: p._version for p in [*self.model.parameters(), *twin.parameters()]}
        losses = [self._step(twin, optimizer, step) for step in steps]
        if any(p._version != before[p] for p in self.model.parameters()):
            raise ConfigError("step_fn: changed the model itself; it must train the copy that it is given")
        if all(p._version == before[p] for p in twin.parameters()):
            raise ConfigError("step_fn: changed no parameter of the model it was given; it must make a whole step")
        return losses

    def _step(self, twin: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
        loss = self.step_fn(twin, optimizer, step)
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            return loss.item()
        if isinstance(loss, (int, float)):
            return float(loss)
        raise ConfigError(f"step_fn: returned a {type(loss).__name__}; it must return the loss, a number")

    def time(self, setting: dict[str, Any]) -> Timed:
        """Time compiled steps in pairs, dense and sparse alternating, and time refreshes separately."""
        never = {**setting, "refresh_every": 2**31}
        dense, sparse = copy.deepcopy(self.model), copy.deepcopy(self.model)
        compile(sparse, **never, **self.options, backend=self.backend)
        if self.backend != "eager":
            dense.compile(backend=self.backend)
        seconds: list[list[float]] = [[], []]
        with self._alone(0):
            sides = [(twin, self.optimizer(twin.parameters())) for twin in (dense, sparse)]
            for step in range(WARMUP + PAIRS):
                for i in (0, 1) if step % 2 else (1, 0):
                    spent = self._timed(partial(self._step, *sides[i], step))
                    if step >= WARMUP:
                        seconds[i].append(spent)
            refreshes = [self._timed(partial(refresh, sparse)) for _ in range(3)]
        forget(self.compiled)  # otherwise later models and the user's own would count the copies as recompilations
        ratio = [s / d for d, s in zip(*seconds, strict=True)]
        size = count_model_bytes(sparse, sites(sparse))
        return Timed(
            statistics.median(seconds[1]),
            statistics.median(seconds[0]),
            tuple(statistics.quantiles(ratio, n=4, method="inclusive")),
            statistics.median(refreshes),
            size["sparse"],
            size["dense"],
        )

    def _timed(self, work: Callable[[], object]) -> float:
        cuda = next((p.device for p in self.model.parameters() if p.is_cuda), None)
        start = time.perf_counter()
        work()
        if cuda is not None:
            torch.cuda.synchronize(cuda)
        return time.perf_counter() - start


class own_randomness:
    """Inside the ``with``, torch's generators start from a seed; afterwards their state is restored."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
        self.fork, self.seed = torch.random.fork_rng(devices=devices), seed

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
