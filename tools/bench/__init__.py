"""Benchmarks: ``python -m topkast.tools.bench --help``."""
