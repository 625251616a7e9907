"""A file that appears under its name only when it is complete.

The content goes to a temporary file or folder in the same folder, which then takes the name at once. Whoever writes
holds a lock on it. A killed process holds no lock, so the next writer in the folder removes what that process left.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from topkast.runtime.errors import ConfigError

try:
    import fcntl
except ImportError:  # no Unix: nothing that a killed process left is removed
    fcntl = None  # type: ignore[assignment]

# The name says nothing of the target: a target's own name may have as many bytes as a file system allows.
_TEMPORARY = re.compile(r"\.topkast-[0-9a-f]{16}\.part")


def path_of(name: str, value: Any) -> Path:
    """The value of an argument as a path; ConfigError if it is none."""
    try:
        text = os.fsdecode(value)
    except TypeError as error:
        raise ConfigError(f"{name}={value!r}: must be a path") from error
    if "\0" in text:
        raise ConfigError(f"{name}={value!r}: must be a path, and no path holds a zero byte")
    return Path(text)


def regular(path: Path) -> Path:
    """The file that a path stands for, with links followed: a regular file, or one that does not exist yet.

    Raises:
        OSError: the path is a folder, a device or a pipe; the folder does not exist; or the name is too long.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise FileExistsError(f"{target} is {kind}, and only a regular file is replaced")
    return target


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. At the end of the block it takes the name ``path``; after an error it is removed.

    A file that is replaced hands on its mode; a new file has the mode that the umask gives. If two processes write to
    one path, the later one wins.

    Raises:
        OSError: as :func:`regular`, or the disk is full.
    """
    target = regular(path)
    beside, number = _made(target.parent, lambda name: os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
            file.flush()
            os.fsync(number)
            take_name(beside, target)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path``, from which :func:`take_name` moves files. It is removed afterwards.

    Raises:
        OSError: as :func:`regular`.
    """

    def make(name: Path) -> int:
        name.mkdir(mode=0o700)
        return os.open(name, os.O_RDONLY)

    folder, number = _made(regular(path).parent, make)
    try:
        yield folder
    finally:
        os.close(number)
        shutil.rmtree(folder, ignore_errors=True)


def take_name(beside: Path, path: Path) -> None:
    """Move a complete file to its name, at once. Links are followed, and a file that is replaced hands on its mode."""
    target = regular(path)
    if target.exists():
        beside.chmod(stat.S_IMODE(target.stat().st_mode))
    os.replace(beside, target)


def _made(folder: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new locked entry of a folder, and its file descriptor."""
    _remove_left(folder)
    while True:
        beside = folder / f".topkast-{secrets.token_hex(8)}.part"
        number = make(beside)
        try:
            _lock(number, wait=True)
            if beside.exists():  # another writer may have removed it before it was locked
                return beside, number
        except BaseException:
            os.close(number)
            raise
        os.close(number)


def _lock(number: int, wait: bool) -> bool:
    """Lock an open file or folder. Whether it is locked now; True too if the file system has no locks and ``wait``."""
    if fcntl is None:
        return wait
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return wait
    return True


def _remove_left(folder: Path) -> None:
    """Remove what killed processes left. What cannot be looked at or removed stays."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _TEMPORARY.fullmatch(entry.name) is None or entry.is_symlink():
                continue
            with contextlib.suppress(OSError):
                number = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    if _lock(number, wait=False):
                        remove = shutil.rmtree if entry.is_dir() else os.unlink
                        remove(entry.path)
                finally:
                    os.close(number)
