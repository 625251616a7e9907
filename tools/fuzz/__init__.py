"""Errors planted in the code, and whether the tests see them: ``python -m topkast.tools.fuzz --help``."""
