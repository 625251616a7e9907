"""Models that nobody here wrote: ``python -m topkast.tools.zoo --help``."""
