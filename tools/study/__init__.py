"""Does it learn? ``python -m topkast.tools.study --help``."""
