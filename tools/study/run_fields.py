"""What one run is: its fields, those that its method uses, and the arguments of ``topkast.compile`` they make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from topkast.compiler.config import Config, pair
from topkast.compiler.convert.initial import QUARTER, TENTH
from topkast.runtime.errors import ConfigError
from topkast.runtime.methods import METHODS

# Beside the methods of topkast.compile: the dense model, a dense one with as many parameters as the sparse one works
# with, and two that sparsify in another place.
BASELINES = ("dense", "small-dense", "meprop", "swat")
OPTIMIZERS = ("adamw", "sgd", "muon", "nanogpt")
DENSE_ONLY = ("muon", "nanogpt")


class StudyError(Exception):
    """A grid, a task or a file cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """One training run; equal runs are the same run, whatever arm they stand for.

    Args:
        task: a name of :data:`_study_tasks.TASKS`.
        method: of ``topkast.compile``, or one of :data:`BASELINES`.
        fwd ... drop_fraction: as ``topkast.compile`` has them, with its defaults; ``stop_exploring_after`` and
            ``fwd_reached_after`` are shares of the steps. What a method does not use is None, so that no two runs
            differ by it.
        activations: share of activations ("swat") or of output gradients ("meprop") that is kept in the backward.
        initial: as ``topkast.compile`` has it, None where "auto" changes nothing; of "dense" also "gpt2": as GPT-2
            draws its own.
        optimizer: "adamw", "sgd" with momentum 0.9, and for dense models "muon" (AdamW for what is no matrix) and
            "nanogpt", the AdamW of that repository's small models.
        lr: peak of the schedule (warm-up over a tenth of the steps, then a cosine to a twentieth).
        lr_rest: that of norms, biases and embeddings; None: ``lr`` too.
        width: of the model; None: the task's.
        tuning: train without a part of the training data, and take the quality on that part: what a rate is chosen by.
        seed: of the weights, the batches and the sets.
        finish: share of the steps at the end in which the model is dense again, from W_A.
        power: α of Powerpropagation (arXiv 2110.00296): the optimizer moves φ, where θ = φ|φ|^(α-1); 1: θ itself.
        inputs: of :func:`topkast.param_groups`, for ``lr``.
    """

    task: str
    method: str
    steps: int
    batch: int
    lr: float
    seed: int = 0
    fwd: float | None = Config.fwd
    bwd: float | None = None
    block: str = "1x1"
    balanced: bool | None = Config.balanced
    distribution: str | Mapping[str, tuple[float, float]] = Config.distribution
    refresh_every: int | None = Config.refresh_every
    stop_exploring_after: float | None = Config.stop_exploring_after
    explore: str | None = Config.explore
    exploration_l2: float | None = Config.exploration_l2
    exploration_decay: float | None = Config.exploration_decay
    drop_fraction: float | None = Config.drop_fraction
    activations: float | None = 0.2
    initial: str | None = Config.initial
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    lr_rest: float | None = None
    width: int | None = None
    tuning: bool = False
    backend: str = "eager"
    refresh_growth: float | None = Config.refresh_growth
    fwd_start: float | None = Config.fwd_start
    fwd_reached_after: float | None = Config.fwd_reached_after
    finish: float = 0.0
    power: float = 1.0
    inputs: float | None = None

    @property
    def timed(self) -> bool:
        """Whether a measured step says what the run takes: not where steps differ, or the loop does more."""
        same = self.refresh_growth in (None, 1.0) and self.fwd_start is None
        return same and self.finish == 0 and self.power == 1

    @property
    def key(self) -> str:
        """Names the run in a file of results."""
        return json.dumps(asdict(self), sort_keys=True)

    def options(self) -> dict[str, Any]:
        """The arguments of ``topkast.compile``."""
        used = {name: getattr(self, name) for name in [*COMPILED, "backend"] if getattr(self, name) is not None}
        for name in ("stop_exploring_after", "fwd_reached_after"):
            if name in used:
                used[name] = round(used[name] * self.steps)
        rows, columns = self.block.split("x")
        return used | {"block": (int(rows), int(columns)), "initial": self.initial}


# Arguments of topkast.compile, and those of them that not every method uses. When sets are chosen in the background is
# not studied. An argument that is to be studied needs a field of Run and nothing else.
COMPILED = sorted({field.name for field in fields(Run)} & {field.name for field in fields(Config)})
OPTIONAL = sorted({name for method in METHODS.values() for name in method.uses} & set(COMPILED))


def canonical(run: Run) -> Run:
    """The run without what its method does not use, and B's sparsity in figures; StudyError for what cannot be."""
    if run.method not in METHODS and run.method not in BASELINES:
        raise StudyError(f"method={run.method!r}: must be one of {', '.join([*METHODS, *BASELINES])}")
    if run.optimizer not in OPTIMIZERS:
        raise StudyError(f"optimizer={run.optimizer!r}: must be one of {', '.join(OPTIMIZERS)}")
    if run.optimizer in DENSE_ONLY and run.method not in ("dense", "small-dense"):
        raise StudyError(f"optimizer={run.optimizer!r}: must be 'adamw' or 'sgd' with method={run.method!r}")
    uses = METHODS[run.method].uses if run.method in METHODS else ()
    unused: dict[str, Any] = {name: None for name in OPTIONAL if name not in uses}
    if run.method not in ("meprop", "swat"):
        unused["activations"] = None
    if run.method in ("dense", "meprop"):
        unused["fwd"] = None
    if run.method in BASELINES:
        kept = {"method", "seed", "fwd", "initial", *OPTIONAL}
        unused |= {field.name: field.default for field in fields(Run) if field.name in set(COMPILED) - kept}
    first = run.method in METHODS and METHODS[run.method].largest_first
    alike = run.distribution == "uniform" and not TENTH < 1 - (run.fwd or 0) <= QUARTER
    if run.initial == "auto" and (alike or not first):
        unused["initial"] = None
    if run.lr_rest == run.lr:
        unused["lr_rest"] = None
    if "bwd" in uses:
        try:
            unused["bwd"] = pair("", run.fwd if run.fwd_start is None else run.fwd_start, run.bwd)[1]
        except ConfigError as error:
            raise StudyError(str(error)) from error
    return replace(run, **unused)
