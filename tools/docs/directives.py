"""Directives for the pages in docs/ whose content is made while the pages are built.

``{options}`` is the table of the options, ``{formats}`` the table of the export formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from . import tables


def _made_by(make: Callable[[], str]) -> type[SphinxDirective]:
    """A directive without arguments that stands for the Markdown that ``make`` returns."""

    class Made(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes(make(), allow_section_headings=True)

    return Made


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this once."""
    app.add_directive("options", _made_by(tables.options))
    app.add_directive("formats", _made_by(tables.formats))
    return {"parallel_read_safe": True}
