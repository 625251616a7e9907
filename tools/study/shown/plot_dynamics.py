"""Pictures of mask dynamics: one line a layer over the steps, and distances between seeds as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: there may be no display

import matplotlib.pyplot as plt

from topkast.compiler.topology.dynamics import Moved

SETS = {"a": "A, the forward set", "b": "B, the backward set"}


def plot_layers(
    path: Path, title: str, layers: Mapping[str, Sequence[Moved]], total: Sequence[Moved], what: str
) -> None:
    """`what`, the first part of a field of Moved, of every layer in colour and of the whole model in black.

    A field that exists for A and for B gives two panels.
    """
    known = Moved.__dataclass_fields__
    fields = {what: ""} if what in known else {f"{what}_{which}": label for which, label in SETS.items()}
    figure, panels = plt.subplots(
        1, len(fields), figsize=(7 * len(fields), 4.5), layout="constrained", squeeze=False, sharey=True
    )
    colours = plt.get_cmap("viridis")
    for axes, (name, label) in zip(panels[0], fields.items(), strict=True):
        for i, (layer, seen) in enumerate(layers.items()):
            steps, shares = [m.step for m in seen], [100 * getattr(m, name) for m in seen]
            axes.plot(steps, shares, ".-", color=colours(i / max(1, len(layers) - 1)), linewidth=1, label=layer)
        axes.plot([m.step for m in total], [100 * getattr(m, name) for m in total], "k-", linewidth=2.5, label="all")
        if not total:
            axes.text(0.5, 0.5, "no refresh in this run", transform=axes.transAxes, ha="center")
        axes.set(title=label, xlabel="step of the refresh", ylabel="%")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylim(bottom=0)  # last: an axis with a limit no longer grows, and the panels share the axis
    panels[0][-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Distances, a group of bars for each key, one colour for each way of measuring."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    ways = list(next(iter(groups.values())))
    for i, way in enumerate(ways):
        places = [g + (i - (len(ways) - 1) / 2) * 0.8 / len(ways) for g in range(len(groups))]
        bars = axes.bar(places, [group[way] for group in groups.values()], 0.8 / len(ways), label=way)
        axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(title=title, ylabel="distance: share not in common", ylim=(0, 1.1))
    axes.legend(fontsize=7, ncols=len(ways))
    figure.savefig(path, dpi=130)
    plt.close(figure)
