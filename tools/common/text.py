"""Real text as bytes: the Python standard library's own sources, or the user's file or folder.

The vocabulary is the 256 byte values, as in enwik8 models, so a loss in nats divided by ln 2 is bits per byte.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VOCABULARY = 256
VALIDATION_SHARE = 0.1


class TextError(Exception):
    """The text cannot be used; the message says which path and why."""


@dataclass(frozen=True)
class Text:
    """Training and validation bytes (uint8, 1-D) and where they came from."""

    source: str
    train: Tensor
    validation: Tensor
    train_files: int
    validation_files: int

    def batch(self, generator: torch.Generator, size: int, length: int) -> tuple[Tensor, Tensor]:
        """Random training windows: inputs and the bytes that follow them, both int64 [size, length]."""
        starts = torch.randint(len(self.train) - length, (size,), generator=generator)
        return _windows(self.train, starts, length)

    def validation_batches(self, count: int, size: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """`count` batches of windows spread evenly over the validation bytes: the same ones at every call."""
        starts = torch.linspace(0, len(self.validation) - length - 1, count * size).long()
        return [_windows(self.validation, part, length) for part in starts.split(size)]


def load_text(path: Path | None, length: int) -> Text:
    """The text at `path` (a file, or a folder read recursively), or the standard library's sources for None.

    A folder is split by file, each by a hash of its relative name, so that no file is in both halves and a new file
    moves no other. A single file is split by position, its last tenth for validation.

    Raises:
        TextError: no such path, no text in it, or fewer than `length` + 1 bytes on either side.
    """
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = {name: data for name, data in _read(root, "*.py").items() if "site-packages" not in Path(name).parts}
        source = "the Python standard library's *.py"
    elif path.is_dir():
        files, source = _read(path, "*"), str(path)
    elif path.is_file():
        files, source = {path.name: path.read_bytes()}, str(path)
    else:
        raise TextError(f"--text {path}: no such file or folder")

    sides = _split(files)
    joined = [b"".join(side) for side in sides]
    for name, data in zip(("training", "validation"), joined, strict=True):
        if len(data) <= length:
            hint = "; a folder is split by file, so give more files or a single one" if path and path.is_dir() else ""
            raise TextError(f"{source}: {len(data)} bytes of {name} text; a window needs more than {length}{hint}")
    train, validation = (torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for data in joined)
    return Text(source, train, validation, len(sides[0]), len(sides[1]))


def in_validation(name: str) -> bool:
    """Whether the file of that relative name belongs to validation: the same answer on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < VALIDATION_SHARE * 2**32


def _read(root: Path, pattern: str) -> dict[str, bytes]:
    """Relative name → bytes of the text files under `root`; hidden and binary ones (a zero byte) are left out."""
    found = {}
    for path in sorted(root.rglob(pattern)):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            found[name.as_posix()] = data
    return found


def _split(files: dict[str, bytes]) -> tuple[list[bytes], list[bytes]]:
    if len(files) == 1:
        (data,) = files.values()
        cut = int(len(data) * (1 - VALIDATION_SHARE))
        return [data[:cut]], [data[cut:]]
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for name, data in files.items():
        sides[in_validation(name)].append(data)
    return sides


def _windows(data: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    window = data[starts[:, None] + torch.arange(length + 1)].long()
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()
