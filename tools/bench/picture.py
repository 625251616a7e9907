"""Draw the picture of the README, training and deployment beside dense, from the files in tools/results.

python -m topkast.tools.bench.picture
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topkast.tools.common.figures import BYTES, TIME, Bar, draw_bars, frame, svg
from topkast.tools.common.places import ROOT
from topkast.tools.common.results import read

PICTURE = ROOT / "docs" / "_static" / "against-dense.svg"
BLOCK, THREADS = [16, 1], 2  # the fastest kind of block; all cores of the machine that measured
NAMES = {"gpt2": "GPT-2, width 512", "bert": "BERT-base's shape", "vit": "ViT-B/16", "resnet50": "ResNet-50"}
RESERVOIRS = {"device": "{} M weights", "disk": "{} M, reservoir on disk"}


def steps(found: dict[str, Any]) -> list[Bar]:
    """The time of whole training steps, each with its share of a refresh, from `bench step`."""
    rows = [row for row in found["rows"] if row["block"] == BLOCK and row["threads"] == THREADS]
    return [_timed(NAMES[row["model"]], row["ratio with refresh"], row["bound of the model"]) for row in rows]


def memory(found: dict[str, Any]) -> list[Bar]:
    """The peak of memory while steps run, and, as the line's end, the peak of a refresh, from `bench model`."""
    dense, millions, bars = found["ways"]["dense"]["peak of steps"], round(found["parameters"] / 1e6), []
    for way, label in RESERVOIRS.items():
        step, refresh = (found["ways"][way][f"peak of {what}"] / dense for what in ("steps", "refresh"))
        said = f"{step:.2f}, in a refresh {refresh:.2f}"
        bars.append(Bar(label.format(millions), step, step, refresh, BYTES, said=said))
    return bars


def files(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """The bytes of the files, from `bench onnx`, one record for each model."""
    ratios = {row["model"]: row["bytes"]["sparse"] / row["bytes"]["dense"] for row in map(_exported, found)}
    return [Bar(NAMES[model], ratio, ratio, ratio, BYTES) for model, ratio in ratios.items()]


def latencies(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """The time of one input in ONNX Runtime, with topkast's kernels, from `bench onnx`."""
    return [_timed(NAMES[row["model"]], row["latency"]) for row in map(_exported, found)]


def _exported(found: dict[str, Any]) -> dict[str, Any]:
    kind = (BLOCK, THREADS, "custom")
    return next(row for row in found["model"] if (row["block"], row["threads"], row["format"]) == kind)


def _timed(label: str, ratio: dict[str, float], bound: float | None = None) -> Bar:
    return Bar(label, ratio["low"], ratio["median"], ratio["high"], TIME, bound)


def caption(found: Sequence[dict[str, Any]]) -> str:
    """The meaning of the lines, the settings, the machine and the dates; the settings are those of `step`."""
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


def main(path: Path = PICTURE) -> None:
    step, model = read("step"), read("model")
    exported = [read(f"onnx-{name}") for name in NAMES]
    lines: list[Bar | str] = [
        "Training: time of a step",
        *steps(step),
        "Training: memory",
        *memory(model),
        "Exported: file",
        *files(exported),
        "Exported: time in ONNX Runtime, with topkast's kernels",
        *latencies(exported),
    ]
    with svg(path, height=0.24 * len(lines) + 1.15) as figure:
        draw_bars(figure.subplots(), lines)
        head = "Time and memory of sparse models, as a share of dense"
        frame(figure, head, caption([step, model, *exported]))


if __name__ == "__main__":
    main()
