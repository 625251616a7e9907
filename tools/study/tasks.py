"""The tasks: a model, batches, a loss, and the quality that is reported (lower is better for all)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topkast.tools.common.text import Text

from . import data
from .models import ByteModel, ConvNet, torchvision_resnet
from .run_fields import StudyError

LENGTH = 64


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        quality: what is measured, with its unit.
        build: the model of a width.
        width: that of the dense model; ``step`` is what a width is a multiple of.
        load: gives the data for ``--data``.
        batch: (data, generator, size) -> inputs and targets.
        score: (model, data) -> the quality and the mean loss in nats.
        hold_out: data -> what a rate is chosen on: an eighth of the training data in place of the test data, and the
            rest for training. So no rate has seen what is reported.
    """

    quality: str
    build: Callable[[int], nn.Module]
    width: int
    step: int
    load: Callable[[Path | None], Any]
    batch: Callable[[Any, torch.Generator, int], tuple[Tensor, Tensor]]
    score: Callable[[nn.Module, Any], tuple[float, float]]
    hold_out: Callable[[Any], Any]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    logits = model(x)
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def _text_batch(text: Text, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    return text.batch(generator, size, LENGTH)


def _text_score(model: nn.Module, text: Text) -> tuple[float, float]:
    losses = [loss_of(model, x, y).item() for x, y in text.validation_batches(16, 32, LENGTH)]
    nats = sum(losses) / len(losses)
    return nats / math.log(2), nats


def _text_hold_out(text: Text) -> Text:
    first = len(text.train) * 7 // 8
    return replace(text, train=text.train[:first], validation=text.train[first:])


def _image_hold_out(images: data.Images) -> data.Images:
    held = torch.arange(len(images[0])) % 8 == 0
    return images[0][~held], images[1][~held], images[0][held], images[1][held]


def _image_batch(images: data.Images, generator: torch.Generator, size: int, crop: int = 0) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(images[0]), (size,), generator=generator)
    x = images[0][chosen]
    if crop:  # the usual augmentation: a shift, and half of them mirrored
        down, right = torch.randint(2 * crop + 1, (2,), generator=generator).tolist()
        side = x.shape[-1]
        x = F.pad(x, (crop,) * 4)[..., down : down + side, right : right + side]
        mirrored = torch.rand(size, generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x, images[1][chosen]


def _image_score(model: nn.Module, images: data.Images) -> tuple[float, float]:
    wrong = nats = 0.0
    for x, y in zip(images[2].split(500), images[3].split(500), strict=True):
        logits = model(x)
        wrong += float((logits.argmax(1) != y).sum())
        nats += F.cross_entropy(logits, y, reduction="sum").item()
    return 100 * wrong / len(images[3]), nats / len(images[3])


def _text_task(load: Callable[[Path | None], Any], width: int = 128, layers: int = 2, std: float | None = None) -> Task:
    build = partial(ByteModel, layers=layers, length=LENGTH, std=std)
    return Task("bits per byte", build, width, 4, load, _text_batch, _text_score, _text_hold_out)


def _image_task(load: Callable[[Path | None], Any], crop: int, *shape: Any) -> Task:
    batch = partial(_image_batch, crop=crop)
    return Task(
        "test error, %", lambda width: ConvNet(width, *shape), 32, 1, load, batch, _image_score, _image_hold_out
    )


TASKS = {
    "bytes": _text_task(lambda path: data.standard_library(LENGTH)),
    "bytes-large": _text_task(lambda path: data.standard_library(LENGTH), width=256, layers=4),
    "bytes-gpt2": _text_task(lambda path: data.standard_library(LENGTH), layers=4, std=0.02),
    "digits": _image_task(lambda path: data.digits(), 0, 1, 10, (1, 2)),
    "digits-resnet": replace(_image_task(lambda path: data.large_digits(), 0), build=torchvision_resnet),
    "cifar10": _image_task(partial(data.cifar, 10), 4, 3, 10, (1, 2, 1, 2, 1)),
    "cifar100": _image_task(partial(data.cifar, 100), 4, 3, 100, (1, 2, 1, 2, 1)),
}


def task_of(name: str) -> Task:
    """The task of that name; StudyError for none."""
    if name not in TASKS:
        raise StudyError(f"task={name!r}: must be one of {', '.join(TASKS)}")
    return TASKS[name]
