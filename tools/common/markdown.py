"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], lines: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table, without a line break at its end.

    Args:
        headings: of the columns.
        lines: the cells of each line.
        numbers: whether all columns but the first are aligned at the right.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
