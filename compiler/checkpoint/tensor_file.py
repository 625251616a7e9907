"""The bytes of a safetensors file: its head, and checksums, which the format itself does not have.

The metadata's entry :data:`SUMS` holds a CRC-32 of the head (with zeros in place of this number) and one of each
tensor, in the order of the data. So a part of a file can be read and checked alone. CRC-32 takes 0.25 s for a gigabyte.
Files of earlier commits have no checksums and are read without them.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save as one_file
from torch import Tensor

SUMS = "crc32"
EMPTY = "00000000"
CHUNK = 1 << 20  # bytes that are checked at once


class TensorWriter:
    """Writes a file tensor after tensor, part after part, and its checksums at the end.

    Args:
        file: opened for writing, at its beginning.
        tensors: name -> tensor; only dtypes and shapes are used. The data must be added in the same order.
        metadata: the header's entries.
    """

    def __init__(self, file: BinaryIO, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.file, self.sums = file, list[int]()
        self.blank = " ".join([EMPTY] * (1 + len(tensors)))
        self.head = _head(tensors, {SUMS: self.blank, **metadata})
        file.write(self.head)

    def next_tensor(self) -> None:
        """Begin the next tensor: bytes that are added from now on belong to it."""
        self.sums.append(0)

    def add(self, data: Any) -> None:
        """Add bytes to the tensor."""
        self.file.write(data)
        self.sums[-1] = zlib.crc32(data, self.sums[-1])

    def finish(self) -> None:
        """Write the checksums into the head."""
        sums = "".join(f" {one:08x}" for one in self.sums)
        blank, half = self.blank.encode(), (EMPTY + sums).encode()
        head = self.head.replace(blank, half, 1)
        self.file.seek(0)
        self.file.write(head.replace(half, f"{zlib.crc32(head):08x}{sums}".encode(), 1))


def data_of(tensor: Tensor) -> Any:
    """The bytes of a tensor."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def wrong_sum(path: Path, wanted: Callable[[str], bool]) -> str | None:
    """The name of a part whose checksum is wrong; None if all are right, or if the file has no checksums.

    Args:
        path: a file that safetensors has opened without an error.
        wanted: whether to check the tensor of this name.
    """
    with open(path, "rb") as file:
        size = file.read(8)
        head = size + file.read(int.from_bytes(size, "little"))
        entries = json.loads(head[8:])
        sums = entries.pop("__metadata__", {}).get(SUMS)
        if sums is None:
            return None
        if re.fullmatch(f"[0-9a-f]{{8}}( [0-9a-f]{{8}}){{{len(entries)}}}", sums) is None:
            return "the header"
        own, *of_tensors = (int(one, 16) for one in sums.split(" "))
        if zlib.crc32(head.replace(sums.encode(), (EMPTY + sums[8:]).encode(), 1)) != own:
            return "the header"
        places = sorted((entry["data_offsets"], name) for name, entry in entries.items())
        for ((begin, end), name), right in zip(places, of_tensors, strict=True):
            if wanted(name) and _sum(file, len(head) + begin, end - begin) != right:
                return name
    return None


def _sum(file: BinaryIO, begin: int, left: int) -> int:
    file.seek(begin)
    found = 0
    while left > 0 and (part := file.read(min(left, CHUNK))):
        found, left = zlib.crc32(part, found), left - len(part)
    return found


def _head(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The beginning of a safetensors file: eight bytes with the length of the JSON after them, and this JSON."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _word(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in an order in which all data is aligned."""
    return dict(sorted(tensors.items(), key=lambda one: (-one[1].element_size(), one[0])))


@functools.cache
def _word(dtype: torch.dtype) -> str:
    """The format's own word for a dtype."""
    return str(json.loads(one_file({"tensor": torch.empty(0, dtype=dtype)})[8:])["tensor"]["dtype"])
