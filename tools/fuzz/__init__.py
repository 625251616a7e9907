"""Random use of topkast, and whether it holds: ``python -m topkast.tools.fuzz --help``. ``kinds`` holds what is tried.

``python -m topkast.tools.fuzz.planted`` plants errors in a copy of the tree, and says whether the tests see them.
"""
