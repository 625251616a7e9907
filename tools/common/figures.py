"""One style for every figure that a tool draws, and SVG files whose bytes depend on the drawn data alone.

The background is white, so that a figure reads the same on a light and on a dark page. Letters are text, in DejaVu Sans
or the viewer's own font: the layout leaves room for DejaVu Sans, which is wider than most. Colours are those of Okabe
and Ito (2008), which people with any kind of colour blindness tell apart: https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
INK, GREY, FAINT = "#222222", "#6B6B6B", "#D9D9D9"  # text and dense; second thoughts; lines that only guide the eye
TIME, BYTES = BLUE, ORANGE
# For things that have no colour of their own; the first four differ in brightness too.
COLOURS = (BLUE, VERMILLION, INK, SKY, ORANGE, PURPLE, GREEN, GREY)
WIDTH = 7.5  # inches, 720 pixels of a page: about a column of a README
SMALL = 8.0  # points, of captions and of the labels of marks

STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": GREY,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": GREY,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # Verdana is as wide, and no other font is wider
    "svg.fonttype": "none",  # letters stay letters, a quarter of the bytes of outlines
    "svg.hashsalt": "topkast",  # names inside the file are hashes; by default they are salted at random
}
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_DRAWN = re.compile(r' (?:[dxy]="|transform="(?:rotate|translate)\()[^"]*"')


@contextmanager
def svg(path: Path, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """A figure in the common style; the file is written when the block ends without an error.

    Args:
        path: of the SVG; its folder is made if it is not there.
        height, width: in inches.
    """
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
    path.write_text(_DRAWN.sub(_rounded, path.read_text(encoding="utf-8")), encoding="utf-8")


def _rounded(attribute: re.Match[str]) -> str:
    """Two digits behind the point, a hundredth of a pixel: smaller files, and no trace of a processor's last bit."""
    return _NUMBER.sub(lambda number: f"{float(number[0]):.2f}", attribute[0])


def frame(figure: Figure, title: str, caption: str) -> None:
    """A title over the whole figure, empty for none, and small lines below it."""
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    figure.supxlabel(caption, x=0.01, ha="left", size=SMALL, color=GREY)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]], size: float = SMALL) -> None:
    """Name lines at the right edge, in place of a legend, with labels moved apart where they would overlap.

    Args:
        axes: nothing is drawn into them later.
        ends: label -> the y where its line ends, and its colour.
        size: of the letters, in points.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    axes.get_ylim()  # settles the limits, which transData goes by
    gap = 1.25 * size / (72 * figure.get_figheight() * axes.get_position().height)
    places, below, above = {}, float("-inf"), 1.0
    for label in sorted(ends, key=lambda label: ends[label][0]):
        at = axes.transAxes.inverted().transform(axes.transData.transform((1, ends[label][0])))[1]
        below = places[label] = max(float(at), below + gap)
    for label in reversed(places):  # none above the axes
        places[label] = min(places[label], above)
        above = places[label] - gap
    for label, at in places.items():
        axes.text(1.015, at, label, color=ends[label][1], size=size, va="center", transform=axes.transAxes)


@dataclass(frozen=True)
class Bar:
    """A ratio to dense, 1 for dense.

    Args:
        label: what was measured.
        low, ratio, high: the bar's length, and where a thin line over it begins and ends.
        colour: ``TIME`` or ``BYTES``.
        bound: what FLOPs alone would allow; None if it is not known.
        said: behind the bar, in place of the ratio.
    """

    label: str
    low: float
    ratio: float
    high: float
    colour: str
    bound: float | None = None
    said: str = ""


def draw_bars(axes: Axes, lines: Sequence[Bar | str], title: str = "dense = 1") -> None:
    """Ratios as bars from 0, with a line for dense at 1; a string among the bars is the title of those below it."""
    at, places = 0.0, []
    for line in lines:
        if isinstance(line, str):
            at += 0.25 if at else 0.0
            axes.text(0, at, line, weight="bold", va="center")
        else:
            places.append(at)
            _draw_bar(axes, at, line)
        at += 1
    bars = [line for line in lines if isinstance(line, Bar)]
    axes.plot([1, 1], [-0.5, at - 0.5], color=INK, linewidth=1.5)
    axes.text(1, -1, title, ha="right", va="center", weight="bold")
    axes.set_xlim(0, max(1.005, *(1.2 * bar.high for bar in bars if bar.high > 1), 0))
    axes.set_ylim(at - 0.4, -1.4)
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _draw_bar(axes: Axes, at: float, bar: Bar) -> None:
    axes.barh(at, 1, 0.72, color=FAINT, alpha=0.35)
    axes.barh(at, bar.ratio, 0.72, color=bar.colour)
    axes.plot([bar.low, bar.high], [at, at], color=INK, linewidth=1.1, solid_capstyle="butt")
    if bar.bound is not None:
        axes.plot([bar.bound] * 2, [at - 0.36, at + 0.36], color="white", linewidth=1.5)
        axes.text(bar.bound + 0.01, at, f"bound {bar.bound:.2f}", va="center", size=SMALL, color="white")
    said = bar.said or f"{bar.ratio:.2f}"
    if bar.high < 0.8:
        axes.text(bar.high + 0.02, at, said, va="center")
    else:  # the line of dense would cross the text
        axes.text(bar.low - 0.02, at, said, va="center", ha="right", color="white" if bar.colour == TIME else INK)


def matplotlib_of(path: Path) -> str:
    """The version of matplotlib that wrote an SVG: another one may place and outline letters in another way."""
    found = re.search(r"Matplotlib v([\w.+]+),", path.read_text(encoding="utf-8"))
    assert found is not None, path
    return found[1]
