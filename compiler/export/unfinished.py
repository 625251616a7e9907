"""Files that appear under their own names only when they are complete."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from topkast.runtime.errors import ExportError


def check_folder(path: Path) -> None:
    """Raise ExportError if the folder of ``path`` does not exist."""
    if not path.parent.is_dir():
        raise ExportError(f"path: the folder {path.parent} does not exist")


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A hidden folder in the folder of ``path``, so that a file moves to ``path`` at once. It is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
