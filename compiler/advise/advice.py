"""The result of :func:`topkast.advise`: figures, a recommendation, and the limits of both."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        bwd, block, refresh_every: the setting.
        losses: for each repeat the mean loss over the last third of its steps; empty if no repeat ran to its end.
        against_dense: the mean difference to the dense model on the same batches, and half the width of its 95 %
            interval over the repeats (Student's t); None without losses.
        seconds: time of a compiled training step, with its share of the refreshes; None if the setting was not timed.
        ratio: lower quartile, median and upper quartile of the step time divided by the dense step's time, in
            interleaved pairs, without refreshes; None if the setting was not timed.
        refresh_seconds: time of one refresh; None if the setting was not timed.
        bytes: size of values, gradients, optimizer state, index and reservoir of the whole model; None if the setting
            was not timed.
    """

    bwd: float
    block: tuple[int, int]
    refresh_every: int
    losses: list[float]
    against_dense: tuple[float, float] | None = None
    seconds: float | None = None
    ratio: tuple[float, float, float] | None = None
    refresh_seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Advice:
    """The facts of :func:`topkast.advise`; ``print`` shows them as a table.

    Attributes:
        kwargs: the recommended arguments of :func:`topkast.compile`.
        trials: every setting that was tried, in order.
        dense_losses: the losses of the dense model, one for each repeat, as :attr:`Trial.losses`.
        dense_seconds, dense_bytes: step time and size of the dense model, if anything was timed.
        why: one sentence for each decision.
        limits: facts that these runs cannot show.
    """

    kwargs: dict[str, Any]
    trials: list[Trial]
    dense_losses: list[float]
    dense_seconds: float | None
    dense_bytes: int | None
    why: list[str]
    limits: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The same facts as plain data."""
        return asdict(self)

    def __rich__(self) -> Group:
        table = Table(title="what was tried", title_justify="left")
        for head in ("block", "bwd", "every", "loss", "minus dense, 95 %", "ms a step", "step / dense", "MB"):
            table.add_column(head, justify="right")
        dense = sum(self.dense_losses) / len(self.dense_losses)
        table.add_row(
            "dense",
            "",
            "",
            f"{dense:.4f}",
            "",
            _milli(self.dense_seconds),
            "",
            _mega(self.dense_bytes),
            end_section=True,
        )
        for trial in self.trials:
            chosen = all(getattr(trial, key) == self.kwargs[key] for key in ("block", "bwd", "refresh_every"))
            cells = (
                f"{trial.block[0]}x{trial.block[1]}",
                f"{trial.bwd:g}",
                str(trial.refresh_every),
                f"{sum(trial.losses) / len(trial.losses):.4f}" if trial.losses else "-",
                "{:+.4f} ± {:.4f}".format(*trial.against_dense) if trial.against_dense else "-",
                _milli(trial.seconds),
                "{1:.2f} [{0:.2f}, {2:.2f}]".format(*trial.ratio) if trial.ratio else "-",
                _mega(trial.bytes),
            )
            table.add_row(*cells, style="bold" if chosen else None)
        words = ", ".join(f"{key}={value!r}" for key, value in self.kwargs.items())
        lines = [*self.why, f"recommended: topkast.compile(model, {words})", *(f"not shown: {x}" for x in self.limits)]
        return Group(table, *map(Text, lines))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined]


def _milli(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


def _mega(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.2f}"
