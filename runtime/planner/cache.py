"""The folder in which the planner keeps measured times between processes."""

from __future__ import annotations

from pathlib import Path

from .plan import _path

PATTERN = "kernels*.json"  # the planner's own files; a folder that TOPKAST_CACHE names may hold others


def folder() -> Path:
    """The folder; it may not exist yet."""
    return _path().parent


def clear() -> list[Path]:
    """Delete the planner's files, and return their paths. The planner then measures every product again."""
    files = sorted(folder().glob(PATTERN))
    for file in files:
        file.unlink(missing_ok=True)
    return files
