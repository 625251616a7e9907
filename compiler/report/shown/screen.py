"""The report on one screen: the headlines, the most important warnings, and the largest groups of equal layers."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import shorten

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from topkast.compiler.report.facts import Facts
from topkast.compiler.report.groups import Layers, at_dots, layers_of
from topkast.compiler.report.headlines import alike, headlines, title
from topkast.compiler.report.numbers import plural

from .plain_text import labelled

LINES = 15
WIDEST = 120
NAMES, RAN = "layers", "kernels that ran"
GAP = 2  # blanks between columns
REASON = 70  # characters of the kernels, and of the reasons why there are none
KERNELS = 26  # columns that long names of layers leave for the kernels
FOR_LAYERS = 5  # lines that many warnings leave for the layers
OF_A_WARNING, CUT = 3, " …"  # lines of one warning; a longer one is cut between two words


def screen(report: Facts, console: Console, options: ConsoleOptions) -> Constrain:
    """The report in at most 15 lines, if there are 80 columns or more.

    Args:
        report: the facts to show.
        console: the console that will print the result.
        options: the options of that console; at most 120 columns are used.
    """
    options = options.update(max_width=min(WIDEST, options.max_width))

    def lines(part: RenderableType) -> int:
        return len(console.render_lines(part, options, pad=False))

    def most(draw: Callable[[int], RenderableType], items: int, room: int, least: int) -> RenderableType:
        """As many of the items as the room has lines for; ``least`` of them at least."""
        drawings = (draw(some) for some in range(min(items, max(room, 0)), least, -1))
        return next((drawing for drawing in drawings if lines(drawing) <= room), None) or draw(least)

    def draw_warnings(some: int) -> RenderableType:
        return _warnings(warnings, some, console, options.max_width)

    def draw_layers(some: int) -> RenderableType:
        return _layers(layers, some, options.max_width)

    layers, warnings = layers_of(report.sites), alike(report)
    top = Group(Text(title(report), style="bold"), labelled(headlines(report).items()))
    room = LINES - lines(top)
    parts: list[RenderableType] = [top]
    if warnings:
        kept = min(FOR_LAYERS, lines(draw_layers(min(2, len(layers)))))
        parts.append(most(draw_warnings, len(warnings), room - kept, least=1))
        room -= lines(parts[-1])
    parts.append(most(draw_layers, len(layers), room, least=0))
    return Constrain(Group(*parts), WIDEST)


def _warnings(warnings: list[str], some: int, console: Console, width: int) -> Table:
    """The first ``some`` warnings, each in a few lines, and a line about what is not shown."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    more = plural(len(warnings) - some, "more warning") + ": .warnings" if len(warnings) > some else ""
    for warning in warnings[:some]:
        lines = list(Text(warning).wrap(console, max(1, width - len("warning") - GAP - len(CUT))))
        if len(lines) > OF_A_WARNING:
            lines = lines[:OF_A_WARNING]
            lines[-1].append(CUT)
            more = more or "in full: .warnings"
        grid.add_row(Text("warning", style="bold yellow"), Text("\n").join(lines))
    if more:
        grid.add_row("", Text(more, style="dim"))
    return grid


def _layers(layers: list[Layers], some: int, width: int) -> Group:
    """The first ``some`` groups of layers, and a line about all that is not shown."""
    shown, hidden = layers[:some], layers[some:]
    more = "every layer, and all measurements: print(topkast.report(model).details())"
    if hidden:
        number = plural(sum(len(group.rows) for group in hidden), "layer")
        more = f"{plural(len(hidden), 'more group')} ({number}): .details() shows every layer"
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    cells = {
        NAMES: [group.label for group in shown],
        "shape": [group.shape for group in shown],
        "in A, in B": [group.density for group in shown],
        RAN: [shorten(group.ran, REASON, placeholder=CUT) for group in shown],
    }
    widths = _widths(cells, width)
    for heading, columns in widths.items():
        table.add_column(heading, width=columns, overflow="fold")
    for row in zip(*(cells[heading] for heading in widths), strict=True):
        table.add_row(Text(at_dots(row[0], widths[NAMES])), *map(Text, row[1:]))
    return Group(table, Text(more, style="dim")) if shown else Group(Text(more, style="dim"))


def _widths(cells: dict[str, list[str]], width: int) -> dict[str, int]:
    """The columns of the table that fit, and how wide each is. Names and kernels always fit, in several lines if they
    are long; the density comes before the shape."""
    found = {heading: max(map(cell_len, [heading, *texts])) for heading, texts in cells.items()}
    kernels = min(found[RAN], KERNELS)
    found[NAMES] = min(found[NAMES], max(width - kernels - GAP, KERNELS))
    free = width - found[NAMES] - kernels - GAP
    for heading in ("in A, in B", "shape"):
        if found[heading] + GAP > free:
            del found[heading]
        else:
            free -= found[heading] + GAP
    found[RAN] = min(found[RAN], max(kernels + free, 1))
    return found
