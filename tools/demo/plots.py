"""The demo's pictures, drawn from what ``summary.json`` holds: loss, time and size beside dense; churn of the sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from topkast.tools.common.figures import BLUE, BYTES, FAINT, TIME, VERMILLION, Bar, draw_bars, frame, label_ends, svg
from topkast.tools.common.places import RESULTS

RUNS = RESULTS / "study" / "dynamics"  # of tools/study/mask_dynamics.py, which trains as the demo does
SETTINGS = ("model", "fwd", "bwd", "block", "refresh_every", "steps", "batch", "length", "lr", "text")
SIDES = {"dense": VERMILLION, "sparse": BLUE}

Summary = dict[str, Any]


def plot_run(path: Path, summary: Summary) -> None:
    """The loss over the steps, dense beside sparse, and bars of what the sparse model costs.

    Args:
        path: of the SVG.
        summary: what ``summary.json`` holds, with the part "export".
    """
    with svg(path, height=3.3) as figure:
        loss, costs = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _draw_loss(loss, summary)
        draw_bars(costs, _costs(summary), "dense = 1")
        costs.set_title("Sparse beside dense")
        given = summary["arguments"]
        rows, columns = given["block"]
        caption = (
            f"{given['model']} on {summary['text']['source']}, fwd {given['fwd']}, bwd {given['bwd']}, "
            f"block {rows}x{columns}; both models at a peak rate of {given['lr']:g}.\n"
            f"Black line: quartiles of {summary['timed pairs']} pairs of steps and of "
            f"{summary['export']['run']['pairs']} pairs of runs of the exported files."
        )
        frame(figure, "", caption)


def _draw_loss(axes: Axes, summary: Summary) -> None:
    """Raw losses faint, their running mean as a line, the validation as dots; the first sixth of the steps is left out.

    The loss falls so far in the first steps that nothing else could be read on the same axis. The axis ends where the
    means and the dots do, for the same reason: single batches differ by more than the two models.
    """
    steps, ends, shown = summary["arguments"]["steps"], {}, []
    left_out, window = steps // 6, max(1, steps // 12)
    for name, colour in SIDES.items():
        curve = np.asarray(summary["models"][name]["training curve"])[left_out:]
        mean = np.convolve(curve, np.full(window, 1 / window), "valid")
        axes.plot(left_out + 1 + np.arange(len(curve)), curve, color=colour, alpha=0.2, linewidth=0.6)
        axes.plot(left_out + (window + 1) / 2 + np.arange(len(mean)), mean, color=colour)
        seen = [point for point in summary["models"][name]["validation curve"] if point[0] > left_out]
        axes.plot(*zip(*seen, strict=True), "o", color=colour, markeredgecolor="white", markersize=6.5)
        ends[f"{name} {seen[-1][1]:.2f}"] = (seen[-1][1], colour)
        shown += [*mean, *(loss for _, loss in seen)]
    margin = 0.1 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_title("Loss, bits per byte (dots: held-out text)")
    first = summary["models"]["sparse"]["training curve"][0]
    axes.set_xlabel(f"step; the first {left_out}, down from {first:.1f}, are left out" if left_out else "step")
    axes.grid(axis="y")
    label_ends(axes, ends, size=9.5)


def _costs(summary: Summary) -> list[Bar]:
    dense, sparse = (summary["models"][name]["bytes"]["total"] for name in SIDES)
    export = summary["export"]
    state, file = sparse / dense, export["bytes"]["sparse"] / export["bytes"]["dense"]
    run, (low, middle, high) = export["run"]["ratio"], summary["step time ratio, sparse to dense"]
    return [
        Bar("time of a step", low, middle, high, TIME),
        Bar("training state", state, state, state, BYTES),
        Bar("exported file", file, file, file, BYTES),
        Bar("ONNX Runtime", run["low"], run["median"], run["high"], TIME),
    ]


def plot_churn(path: Path, summary: Summary, runs: Path = RUNS) -> None:
    """How much of A and of B is new after each refresh, and how much it was in runs that were stored.

    Args:
        path: of the SVG.
        summary: what ``summary.json`` holds.
        runs: folder of stored runs. The range over their layers is drawn if the settings of a file are the same.
    """
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("*.json"))]
    alike = [stored for stored in files if _settings(stored) == _settings(summary)]
    stored = (alike or files)[-1]
    theirs, totals = stored["arguments"], [run["total"] for run in stored["seeds"].values()]
    with svg(path, height=2.9) as figure:
        for number, (axes, which) in enumerate(zip(figure.subplots(1, 2), ("a", "b"), strict=True)):
            points = [(point[0], 100 * point[1 + number]) for point in summary["churn"]]
            if alike:
                layers = [run for seed in stored["seeds"].values() for run in seed["layers"].values()]
                _draw_range(axes, layers, f"new_{which}")
            _draw_shares(axes, points, f"{which.upper()}, the {'forward' if which == 'a' else 'backward'} set")
        falls = [f"{ends[0]:.1%} to {ends[1]:.1%}" for ends in (_first_and_last(totals, f"new_{w}") for w in "ab")]
        caption = (
            f"In {len(totals)} stored runs of {theirs['model']} at {theirs['fwd']}/{theirs['bwd']}, "
            f"with a peak rate of {theirs['lr']} "
            f"and a refresh every {theirs['refresh_every']} of {theirs['steps']} steps,\n"
            f"A's share fell from {falls[0]} and B's from {falls[1]}."
        )
        if alike:
            caption += " Grey: from the smallest to the largest share of a layer in those runs."
        frame(figure, "Churn: the share of a set that is new after a refresh", caption)


def _settings(found: Summary) -> list[str]:
    """The settings that churn depends on; files hold blocks as a list or as the text of a tuple."""
    return [str(found["arguments"][name]).strip("[]()") for name in SETTINGS]


def _draw_range(axes: Axes, layers: Sequence[Sequence[dict[str, float]]], name: str) -> None:
    seen = [[100 * moved[name] for moved in at] for at in zip(*layers, strict=True)]
    steps = [moved["step"] for moved in layers[0]]
    axes.fill_between(steps, [min(one) for one in seen], [max(one) for one in seen], color=FAINT, linewidth=0)


def _draw_shares(axes: Axes, points: Sequence[tuple[int, float]], name: str) -> None:
    said = "no refresh in this run"
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color=BLUE)
        said = f"from {points[0][1]:.1f}% to {points[-1][1]:.1f}%"
    axes.set_title(f"{name}: {said}")
    axes.set(xlabel="step of the refresh", ylabel="% new")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")


def _first_and_last(totals: Sequence[Sequence[dict[str, float]]], name: str) -> tuple[float, float]:
    """The mean over the runs."""
    first, last = (sum(total[at][name] for total in totals) / len(totals) for at in (0, -1))
    return first, last
