"""``topkast.report``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult

from topkast.compiler.report.shown.page import fragment, page
from topkast.compiler.report.shown.plain_text import to_text
from topkast.compiler.report.shown.screen import screen
from topkast.compiler.report.shown.table import Details

from .facts import Facts, facts_of


class Report(Facts):
    """The facts of :func:`topkast.report`.

    - ``print`` shows the most important facts on one screen: at most 15 lines if there are 80 columns or more. Layers
      that are equal are one line, and ``*`` stands for the numbers in their names.
    - :meth:`details` shows everything, layer by layer.
    - :meth:`to_html` returns a page; a notebook shows a part of this page.
    - :meth:`to_dict` returns plain data.

    The fields are the arguments of :class:`topkast.compiler.report.facts.Facts`.
    """

    def details(self) -> Details:
        """Everything that was found, layer by layer: an object that ``print`` shows as tables."""
        return Details(self)

    def to_dict(self) -> dict[str, Any]:
        """The same facts, as data that ``json.dumps`` accepts."""
        return asdict(self)

    def to_html(self) -> str:
        """One HTML page that needs no other file: the layers that are sparse, their kernels, the costs and the
        churn."""
        return page(self)

    def _repr_html_(self) -> str:
        return fragment(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield screen(self, console, options)

    def __str__(self) -> str:
        return to_text(self)

    __repr__ = __str__


def report(model: Any) -> Report:
    """Report which weights are sparse and which are dense, the costs compared with dense training, and warnings.

    Counts come from the current tensors. Fused kernels appear only after they have run, so call this function after a
    training step. All ranks of a sharded model call this function together: ``totals["bytes"]`` has the bytes of this
    rank, and below ``"ranks"`` those of all ranks.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.

    Raises:
        ModelError: the model was not converted.
    """
    return Report(**vars(facts_of(model)))
