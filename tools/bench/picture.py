"""Draw the picture of the README, training and deployment beside dense, from the files in tools/results.

python -m topkast.tools.bench.picture
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from topkast.tools.common.figures import BLUE, FAINT, GREY, INK, ORANGE, SMALL, svg
from topkast.tools.common.places import RESULTS, ROOT

PICTURE = ROOT / "docs" / "_static" / "against-dense.svg"
BLOCK, THREADS = [16, 1], 2  # the fastest kind of block; all cores of the machine that measured
NAMES = {"gpt2": "GPT-2, width 512", "bert": "BERT-base's shape", "vit": "ViT-B/16", "resnet50": "ResNet-50"}
RESERVOIRS = {"device": "{} M weights", "disk": "{} M, reservoir on disk"}


@dataclass(frozen=True)
class Bar:
    """One ratio to dense.

    Args:
        label: what was measured.
        ratio: 1 is dense.
        low, high: where a thin line over the bar begins and ends; both the ratio itself for no line.
        bound: what FLOPs alone would allow; None where the record holds no bound.
        said: behind the bar, in place of the ratio.
    """

    label: str
    ratio: float
    low: float
    high: float
    bound: float | None = None
    said: str = ""


def read(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def steps(found: dict[str, Any]) -> list[Bar]:
    """Of `bench step`: the time of whole training steps, each with its share of a refresh."""
    rows = [row for row in found["rows"] if row["block"] == BLOCK and row["threads"] == THREADS]
    return [_timed(NAMES[row["model"]], row["ratio with refresh"], row["bound of the model"]) for row in rows]


def memory(found: dict[str, Any]) -> list[Bar]:
    """Of `bench model`: the peak while steps run, and, as the line's end, the peak of a refresh."""
    dense, millions, bars = found["ways"]["dense"]["peak of steps"], round(found["parameters"] / 1e6), []
    for way, label in RESERVOIRS.items():
        step, refresh = (found["ways"][way][f"peak of {what}"] / dense for what in ("steps", "refresh"))
        bars.append(Bar(label.format(millions), step, step, refresh, said=f"{step:.2f}, in a refresh {refresh:.2f}"))
    return bars


def files(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """Of `bench onnx`, one record a model: the bytes of the file."""
    ratios = {row["model"]: row["bytes"]["sparse"] / row["bytes"]["dense"] for row in map(_exported, found)}
    return [Bar(NAMES[model], ratio, ratio, ratio) for model, ratio in ratios.items()]


def latencies(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """Of `bench onnx`: the time of one input in ONNX Runtime, with topkast's kernels."""
    return [_timed(NAMES[row["model"]], row["latency"]) for row in map(_exported, found)]


def _exported(found: dict[str, Any]) -> dict[str, Any]:
    kind = (BLOCK, THREADS, "custom")
    return next(row for row in found["model"] if (row["block"], row["threads"], row["format"]) == kind)


def _timed(label: str, ratio: dict[str, float], bound: float | None = None) -> Bar:
    return Bar(label, ratio["median"], ratio["low"], ratio["high"], bound)


def caption(found: Sequence[dict[str, Any]]) -> str:
    """What the lines mean, the settings, the machine and the dates of the records; the settings are those of `step`."""
    machine, given = found[0]["machine"], found[0]["arguments"]
    dates = sorted({one["machine"]["date"][:10] for one in found})
    return (
        "Black line: quartiles of pairs run in turn; for memory, up to the peak of a refresh. "
        "White line: the bound by FLOPs.\n"
        f"fwd {given['fwd']}, bwd {given['bwd']}, blocks of {BLOCK[0]}x{BLOCK[1]} (memory: single weights); "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction set']['torch']}, {THREADS} threads, "
        f"torch {machine['torch']}, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    )


def draw(groups: dict[str, list[Bar]], head: str, small: str, path: Path) -> None:
    """Bars in groups on one axis from 0 to dense.

    Args:
        groups: title of a group -> its bars; one colour for times and another for bytes.
        head: the title.
        small: the lines at the foot.
        path: of the SVG.
    """
    lines = sum(map(len, groups.values())) + len(groups)
    with svg(path, height=0.24 * lines + 1.15) as figure:
        axes = figure.subplots()
        at, labels = 0.0, {}
        for title, bars in groups.items():
            axes.text(0, at, title, weight="bold", va="center")
            for bar in bars:
                at += 1
                labels[at] = bar.label
                _bar(axes, at, bar, ORANGE if "memory" in title.lower() or "file" in title.lower() else BLUE)
            at += 1.25
        axes.plot([1, 1], [-0.4, at - 0.8], color=INK, linewidth=1.5)
        axes.text(1, -0.9, "dense = 1", ha="right", va="center", weight="bold")
        axes.set_xlim(0, 1.005)
        axes.set_ylim(at - 0.7, -1.3)
        axes.set_yticks(list(labels), list(labels.values()))
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        figure.suptitle(head, x=0.01, ha="left")
        figure.supxlabel(small, x=0.01, ha="left", size=SMALL, color=GREY)


def _bar(axes: Axes, at: float, bar: Bar, colour: str) -> None:
    axes.barh(at, 1, 0.72, color=FAINT, alpha=0.35)
    axes.barh(at, bar.ratio, 0.72, color=colour)
    axes.plot([bar.low, bar.high], [at, at], color=INK, linewidth=1.1, solid_capstyle="butt")
    if bar.bound is not None:
        axes.plot([bar.bound] * 2, [at - 0.36, at + 0.36], color="white", linewidth=1.5)
        axes.text(bar.bound + 0.01, at, f"bound {bar.bound:.2f}", va="center", size=SMALL, color="white")
    axes.text(max(bar.ratio, bar.high) + 0.012, at, bar.said or f"{bar.ratio:.2f}", va="center")


def main(path: Path = PICTURE) -> None:
    step, model = read("step"), read("model")
    exported = [read(f"onnx-{name}") for name in NAMES]
    groups = {
        "Training: time of a step": steps(step),
        "Training: memory": memory(model),
        "Exported: file": files(exported),
        "Exported: time in ONNX Runtime, with topkast's kernels": latencies(exported),
    }
    head = "Time and memory of sparse models, as a share of dense"
    draw(groups, head, caption([step, model, *exported]), path)


if __name__ == "__main__":
    main()
