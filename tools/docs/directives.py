"""Directives for the pages in docs/ whose content is made while the pages are built.

``{options}`` is the table of the options, ``{formats}`` the table of the export formats, see ``record_tables.py``.
``{results} NAME`` is a table of stored results, see ``stored_tables.py``. ``{graph} NAME`` is a listing of a small
model that is trained and exported for the page, see ``graphs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from . import graphs, record_tables, stored_tables


def _made_by(parts: Mapping[str, Callable[[], str]], kind: str = "") -> type[SphinxDirective]:
    """A directive that stands for Markdown.

    Args:
        parts: name -> a function that returns the Markdown; the directive's argument is the name, "" is no argument.
        kind: a class for tables, which docs/_static/widths.css knows.
    """

    class Made(SphinxDirective):
        optional_arguments = 1

        def run(self) -> list[nodes.Node]:
            name = "".join(self.arguments)
            if name not in parts:
                raise self.error(f"{{{self.name}}} {name}: must be one of {', '.join(map(repr, parts))}")
            self.env.note_reread()  # the code may have changed since the last build, though the page has not
            made = self.parse_text_to_nodes(parts[name](), allow_section_headings=True)
            for node in made:
                if isinstance(node, nodes.table) and kind:
                    node["classes"].append(kind)
            return made

    return Made


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this once."""
    app.add_directive("options", _made_by({"": record_tables.options}, "stacked"))
    app.add_directive("formats", _made_by({"": record_tables.formats}, "stacked"))
    app.add_directive("results", _made_by(stored_tables.TABLES))
    app.add_directive("graph", _made_by(graphs.PARTS))
    return {"parallel_read_safe": True}
