"""The data of the tasks: what is at hand, and loaders for files that the user has."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from topkast.tools.common.text import Text, load_text

from .run_fields import StudyError

Images = tuple[Tensor, Tensor, Tensor, Tensor]  # training images, their classes, test images, their classes


@functools.cache
def standard_library(length: int) -> Text:
    """The sources of Python's standard library."""
    return load_text(None, length)


@functools.cache
def digits() -> Images:
    """scikit-learn's 1797 handwritten digits of 8 x 8, every other one for the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    classes = torch.from_numpy(found.target).long()
    return images[::2], classes[::2], images[1::2], classes[1::2]


@functools.cache
def large_digits() -> Images:
    """The same digits as 3 x 32 x 32, which is what models for photographs take."""
    images, classes, tests, wanted = digits()
    return _enlarged(images), classes, _enlarged(tests), wanted


def _enlarged(images: Tensor) -> Tensor:
    return F.interpolate(images, size=32, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)


@functools.cache
def cifar(classes: int, data: Path | None) -> Images:
    """CIFAR-10 or CIFAR-100 from their binary version, scaled to [-1, 1]."""
    train = [f"data_batch_{i}.bin" for i in range(1, 6)] if classes == 10 else ["train.bin"]
    test = "test_batch.bin" if classes == 10 else "test.bin"
    if data is None:
        what = f"the folder of CIFAR-{classes}'s binary version, with {train[0]} and {test}"
        raise StudyError(f"task cifar{classes}: needs --data PATH, {what}")
    return *_records(train, data, classes), *_records([test], data, classes)


def _records(names: list[str], path: Path, classes: int) -> tuple[Tensor, Tensor]:
    """A record is its class (for CIFAR-100 a coarse one before it) and 3 x 32 x 32 bytes."""
    labels = 1 if classes == 10 else 2
    images, found = [], []
    for name in names:
        if not (path / name).is_file():
            raise StudyError(f"{path / name}: no such file")
        content = np.fromfile(path / name, np.uint8)
        if len(content) == 0 or len(content) % (labels + 3072):
            raise StudyError(f"{path / name}: {len(content)} bytes are not whole records of {labels + 3072}")
        records = torch.from_numpy(content).view(-1, labels + 3072)
        found.append(records[:, labels - 1].long())
        images.append(records[:, labels:].reshape(-1, 3, 32, 32).float() / 127.5 - 1)
        if int(found[-1].max()) >= classes:
            raise StudyError(f"{path / name}: a class of {int(found[-1].max())}; this is not CIFAR-{classes}")
    return torch.cat(images), torch.cat(found)
