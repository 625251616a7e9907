"""Pictures of mask dynamics: one line a layer over the steps, and distances between seeds as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.colors import to_hex

from topkast.compiler.topology.dynamics import Moved
from topkast.tools.common.figures import BLUE, INK, SKY, SMALL, frame, label_ends, svg

SETS = {"a": "A, the forward set", "b": "B, the backward set"}


def plot_layers(
    path: Path, title: str, layers: Mapping[str, Sequence[Moved]], total: Sequence[Moved], what: str
) -> None:
    """`what`, the first part of a field of Moved, of every layer in colour and of the whole model in black.

    A field that exists for A and for B gives two panels. Names stand at the ends of the lines of the last panel; from
    the first layer to the last the colours go from dark blue to ochre.
    """
    known = Moved.__dataclass_fields__
    fields = {what: ""} if what in known else {f"{what}_{which}": label for which, label in SETS.items()}
    colours = matplotlib.colormaps["cividis"]
    with svg(path, height=max(3.4, 0.15 * len(layers) + 1)) as figure:
        panels = figure.subplots(1, len(fields), squeeze=False, sharey=True)[0]
        ends = {}
        for axes, (name, label) in zip(panels, fields.items(), strict=True):
            for i, (layer, seen) in enumerate(layers.items()):
                colour = to_hex(colours(0.75 * i / max(1, len(layers) - 1)))
                shares = [100 * getattr(moved, name) for moved in seen]
                axes.plot([moved.step for moved in seen], shares, color=colour, linewidth=0.9)
                if shares:
                    ends[layer] = (shares[-1], colour)
            shares = [100 * getattr(moved, name) for moved in total]
            axes.plot([moved.step for moved in total], shares, color=INK, linewidth=2.5)
            if shares:
                ends["all layers"] = (shares[-1], INK)
            axes.set(title=label or "no refresh in this run" * (not total), xlabel="step of the refresh")
            axes.grid(axis="y")
        panels[0].set_ylabel("%")
        panels[0].set_ylim(bottom=0)  # once all is drawn: the panels share this axis, and a limit ends its growth
        label_ends(panels[-1], ends, size=6.5)
        frame(figure, title, "")


def plot_bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Distances as bars with their names, a group for each key, the first way of measuring in colour."""
    with svg(path, height=0.24 * sum(len(group) + 1.3 for group in groups.values()) + 0.7) as figure:
        axes, at, names = figure.subplots(), 0.0, {}
        for key, group in groups.items():
            axes.text(0, at, key, weight="bold", va="center")
            for number, (way, distance) in enumerate(group.items()):
                at += 1
                names[at] = way
                axes.barh(at, distance, 0.72, color=BLUE if number == 0 else SKY)
                axes.text(distance + 0.01, at, f"{distance:.3f}", va="center", size=SMALL)
            at += 1.3
        axes.set_xlim(0, 1.08)
        axes.set_ylim(at - 0.5, -0.6)
        axes.set_yticks(list(names), list(names.values()))
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        frame(figure, title, "Distance: the share that two sets do not have in common.")
