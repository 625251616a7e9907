"""The site: `make docs` builds the pages of this folder to build/docs."""

import topkast

project = "topkast"
author = "the authors of topkast"
release = version = topkast.__version__

extensions = [
    "myst_parser",  # pages are Markdown
    "sphinx.ext.autodoc",  # the reference is made of docstrings
    "sphinx.ext.napoleon",  # which are in Google's form
    "topkast.tools.docs.directives",  # tables and listings that are made from the code
]
exclude_patterns = ["_static"]
myst_enable_extensions = ["colon_fence", "substitution"]
myst_heading_anchors = 3  # a link may name a heading: [text](page.md#heading)

autodoc_typehints = "signature"
# Nobody calls the classes of results, so their constructors are not shown; a class that people call asks for its own.
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 80  # a longer signature shows an argument a line
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A reference to a name must lead somewhere. Types of other packages do not, because the build is offline.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:(class|obj|exc)", r"(?!topkast\b).*"),
    (r"py:class", r"topkast\..*\.M"),  # the type variable of functions that return the model that they got
]

html_theme = "pydata_sphinx_theme"
html_title = "topkast"
html_static_path = ["_static"]
html_css_files = ["widths.css", "diffs.css"]
html_sidebars = {"changelog": []}  # it is alone in its section
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 6,
    "footer_end": [],
}
# Which pages `make docs-links` asks for; it needs the network, `make docs` does not.
linkcheck_timeout = 20
linkcheck_retries = 2
