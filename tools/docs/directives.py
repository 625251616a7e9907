"""Directives for the pages in docs/ whose content is made while the pages are built.

``{options}`` is the table of the options and ``{formats}`` the table of the export formats. ``{results} NAME`` is the
table of stored results with that name, see ``results.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from . import results, tables


def _made_by(make: Callable[[], str]) -> type[SphinxDirective]:
    """A directive without arguments that stands for the Markdown that ``make`` returns."""

    class Made(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes(make(), allow_section_headings=True)

    return Made


class Results(SphinxDirective):
    """``{results} NAME``: one of the tables of ``results.TABLES``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(results.TABLES[self.arguments[0]]())


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this once."""
    app.add_directive("options", _made_by(tables.options))
    app.add_directive("formats", _made_by(tables.formats))
    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
