"""Files that appear under their own names only when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from topkast.runtime.errors import ExportError
from topkast.runtime.new_file import new_folder


def check_folder(path: Path) -> None:
    """Raise ExportError if the folder of ``path`` does not exist."""
    if not path.parent.is_dir():
        raise ExportError(f"path: the folder {path.parent} does not exist")


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A hidden folder in the folder of ``path``, so that a file moves to ``path`` at once. It is removed afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(new_folder(path))
        except OSError as error:
            raise ExportError(f"path: {path} cannot be written ({error})") from error
        yield folder
