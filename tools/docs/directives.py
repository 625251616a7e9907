"""Directives for the pages in docs/ whose content is made while the pages are built.

``{options}`` is the table of the options and ``{formats}`` the table of the export formats. The directives whose names
begin with ``graph-`` show a small model, which is trained for a step and exported while the pages are built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from . import graphs, tables


def _made_by(make: Callable[[], str], kind: str = "") -> type[SphinxDirective]:
    """A directive without arguments that stands for the Markdown that ``make`` returns.

    Tables get the class ``kind``, which docs/_static/tables.css knows.
    """

    class Made(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            self.env.note_reread()  # the code may have changed since the last build, though the page has not
            made = self.parse_text_to_nodes(make(), allow_section_headings=True)
            for node in made:
                if isinstance(node, nodes.table) and kind:
                    node["classes"].append(kind)
            return made

    return Made


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this once."""
    app.add_directive("options", _made_by(tables.options, "stacked"))
    app.add_directive("formats", _made_by(tables.formats, "stacked"))
    app.add_directive("graph-model", _made_by(graphs.model))
    app.add_directive("graph-captured", _made_by(graphs.captured))
    app.add_directive("graph-joint", _made_by(graphs.joint))
    app.add_directive("graph-passes", _made_by(graphs.passes))
    app.add_directive("graph-result", _made_by(graphs.result))
    app.add_directive("graph-file", _made_by(graphs.file))
    return {"parallel_read_safe": True}
