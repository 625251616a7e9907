"""The common style of figures, and the pictures that tools draw from small data."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from topkast.tools.bench import picture
from topkast.tools.common.figures import BLUE, WIDTH, label_ends, matplotlib_of, svg


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
