"""The demo: ``make demo``, or ``python -m topkast.tools.demo --help``."""
