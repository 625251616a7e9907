"""Everything is declared in pyproject.toml; this only compiles the files of the extension side by side."""

from pybind11.setup_helpers import ParallelCompile
from setuptools import setup

ParallelCompile(default=0).install()
setup()
