"""The common style of figures, and the pictures that tools draw from small data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from topkast.tools.bench import picture
from topkast.tools.common.figures import BLUE, BYTES, TIME, WIDTH, Bar, draw_bars, label_ends, matplotlib_of, svg
from topkast.tools.demo.plots import RUNS, plot_churn, plot_run

STORED = RUNS / "rate-1e-3.json"


def draw_line(path: Path, values: list[float]) -> bytes:
    with svg(path, height=2) as figure:
        axes = figure.subplots()
        axes.plot(values)
        axes.set_title("a title")
    return path.read_bytes()


def test_the_bytes_of_a_figure_depend_on_the_data_alone(tmp_path: Path) -> None:
    drawn = draw_line(tmp_path / "folder" / "one.svg", [1, 3, 2])
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert draw_line(tmp_path / "two.svg", [1, 3, 2]) == drawn
    assert draw_line(tmp_path / "three.svg", [1, 3, 4]) != drawn
    text = drawn.decode()
    assert f'width="{72 * WIDTH:g}pt"' in text and ">a title<" in text and "<dc:date>" not in text
    assert re.search(r' d="[^"]*\.\d{3}', text) is None  # rounded
    assert matplotlib_of(tmp_path / "two.svg") == matplotlib.__version__


def test_a_figure_that_fails_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), svg(tmp_path / "no.svg", height=2):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_labels_of_near_lines_do_not_overlap(tmp_path: Path) -> None:
    with svg(tmp_path / "labels.svg", height=2) as figure:
        axes = figure.subplots()
        axes.set_ylim(0, 1)
        label_ends(axes, {"middle": (0.5, BLUE), "low": (0.1, BLUE), "near": (0.501, BLUE), "nearer": (0.502, BLUE)})
        at = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert at["low"] == pytest.approx(0.1) and at["middle"] == pytest.approx(0.5)
    drawn = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert list(drawn) == ["low", "middle", "near", "nearer"]
    for below, above in zip(list(drawn.values()), list(drawn.values())[1:], strict=False):
        assert above.y0 >= below.y0 + 8  # a line's height of letters of eight points, at 100 dots an inch


def test_the_picture_shows_what_the_records_say() -> None:
    step, memory = picture.read("step"), picture.read("model")
    row = next(row for row in step["rows"] if (row["model"], row["block"]) == ("gpt2", [16, 1]))
    bar = picture.steps(step)[0]
    assert (bar.ratio, bar.bound) == (row["ratio with refresh"]["median"], row["bound of the model"])
    ways = memory["ways"]
    bar = picture.memory(memory)[1]
    assert bar.ratio * ways["dense"]["peak of steps"] == pytest.approx(ways["disk"]["peak of steps"])
    assert bar.high * ways["dense"]["peak of steps"] == pytest.approx(ways["disk"]["peak of refresh"])
    exported = [picture.read(f"onnx-{name}") for name in picture.NAMES]
    for found, size, time in zip(exported, picture.files(exported), picture.latencies(exported), strict=True):
        (row,) = (r for r in found["model"] if (r["block"], r["threads"], r["format"]) == ([16, 1], 2, "custom"))
        assert size.ratio == row["bytes"]["sparse"] / row["bytes"]["dense"]
        assert (time.low, time.ratio, time.high) == tuple(row["latency"].values())


def test_the_picture_in_the_repository_is_what_the_records_give(tmp_path: Path) -> None:
    """`python -m topkast.tools.bench.picture` mends it."""
    drawn_by = matplotlib_of(picture.PICTURE)
    picture.main(tmp_path / "drawn.svg")
    if drawn_by != matplotlib.__version__:
        pytest.skip(f"drawn by matplotlib {drawn_by}; {matplotlib.__version__} may place letters in another way")
    assert (tmp_path / "drawn.svg").read_bytes() == picture.PICTURE.read_bytes()


def test_bars_stand_beside_dense(tmp_path: Path) -> None:
    bars = [Bar("short", 0.1, 0.2, 0.3, TIME, bound=0.05), Bar("long", 1.2, 1.3, 1.5, BYTES, said="more")]
    with svg(tmp_path / "bars.svg", height=2) as figure:
        axes = figure.subplots()
        draw_bars(axes, ["a title", *bars])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["short", "long"]
    assert axes.get_xlim()[1] > 1.5
    assert {"a title", "dense = 1", "0.20", "bound 0.05", "more"} == {text.get_text() for text in axes.texts}
    lengths = [patch.get_extents().transformed(axes.transData.inverted()).width for patch in axes.patches]
    assert lengths == pytest.approx([1, 0.2, 1, 1.3])  # behind each bar stands a faint one for dense


def demo_summary(steps: int, **given: Any) -> dict[str, Any]:
    """The summary that the demo would write of a run with the settings of the stored runs, unless said otherwise."""
    stored = json.loads(STORED.read_text())["arguments"] | {"block": (1, 1), "lr": 0.001, "steps": steps, "text": None}
    losses = {"dense": 4.0, "sparse": 4.5}
    models = {
        name: {
            "training curve": [last + 4 * 0.9**step for step in range(steps)],
            "validation curve": [(0, 8.0), (steps // 2, last + 0.1), (steps, last)],
            "bytes": {"total": 100 if name == "dense" else 45},
        }
        for name, last in losses.items()
    }
    run = {"ratio": {"low": 0.6, "median": 0.7, "high": 0.75}, "pairs": 40}
    return {
        "arguments": stored | given,
        "text": {"source": "some text"},
        "models": models,
        "step time ratio, sparse to dense": (0.8, 0.9, 1.1),
        "timed pairs": 7,
        "churn": [(step, 0.2 / step, 0.5 / step) for step in range(1, steps)],
        "export": {"bytes": {"dense": 100, "sparse": 20}, "run": run},
    }


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_the_demos_run_is_drawn(steps: int, tmp_path: Path) -> None:
    plot_run(tmp_path / "run.svg", demo_summary(steps))
    drawn = (tmp_path / "run.svg").read_text()
    for text in ("dense 4.00", "sparse 4.50", ">0.90<", ">0.45<", ">0.20<", ">0.70<", "some text", "7 pairs of steps"):
        assert text in drawn, text
    assert ("the first 10, down from 8.5, are left out" in drawn) == (steps == 60)


def test_churn_is_shown_beside_that_of_stored_runs(tmp_path: Path) -> None:
    plot_churn(tmp_path / "same.svg", demo_summary(250))
    plot_churn(tmp_path / "other.svg", demo_summary(250, refresh_every=7))
    same, other = ((tmp_path / name).read_text() for name in ("same.svg", "other.svg"))
    first = [run["total"][0]["new_a"] for run in json.loads(STORED.read_text())["seeds"].values()]
    for drawn in (same, other):
        assert "A, the forward set: from 20.0% to 0.1%" in drawn
    assert "peak rate of 0.001 and a refresh every 20 of 250 steps" in same
    assert f"share fell from {sum(first) / len(first):.1%}" in same
    assert "Grey:" in same and "Grey:" not in other
    plot_churn(tmp_path / "none.svg", demo_summary(1))
    assert "no refresh in this run" in (tmp_path / "none.svg").read_text()
