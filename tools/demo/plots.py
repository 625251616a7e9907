"""The demo's pictures: loss over steps, and churn of the sets over refreshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: there may be no display

import matplotlib.pyplot as plt

Points = Sequence[tuple[int, float]]


def plot_loss(
    path: Path, title: str, training: Mapping[str, Sequence[float]], validation: Mapping[str, Points]
) -> None:
    """One colour a model: the training loss thin, the validation loss (step, bits per byte) as a line with dots."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, name in enumerate(training):
        colour = f"C{i}"
        axes.plot(range(1, len(training[name]) + 1), training[name], colour, alpha=0.3, linewidth=0.8)
        steps, losses = zip(*validation[name], strict=True)
        axes.plot(steps, losses, f"{colour}o-", label=f"{name}: validation {losses[-1]:.3f}", markersize=4)
    axes.set(title=title, xlabel="step", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_churn(path: Path, title: str, points: Sequence[tuple[int, float, float]]) -> None:
    """Per refresh (step, share of A, share of B): how much of each set is new."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [step for step, _, _ in points]
    axes.plot(steps, [100 * a for _, a, _ in points], "C2o-", label="A, the forward set")
    axes.plot(steps, [100 * b for _, _, b in points], "C3o-", label="B, the backward set")
    if not points:
        axes.text(0.5, 0.5, "no refresh in this run", transform=axes.transAxes, ha="center")
    axes.set(title=title, xlabel="step of the refresh", ylabel="new in the set, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
