"""The study's tasks and references: data, models, meProp and SWAT."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topkast
from topkast.tools.study.data import cifar, digits
from topkast.tools.study.models import ByteModel, ConvNet
from topkast.tools.study.references import SparseGradient, SparseOperands, largest, meprop, swat
from topkast.tools.study.run_fields import Run, StudyError, canonical
from topkast.tools.study.tasks import TASKS
from topkast.tools.study.train import prepare, train_step
from topkast.tools.study.two_rates import make_optimizer


def test_meprop_keeps_the_largest_gradients() -> None:
    x = torch.randn(3, 4, 10, requires_grad=True)
    upstream = torch.randn(3, 4, 10)
    SparseGradient.apply(x, 0.2, False).backward(upstream)
    assert int((x.grad != 0).sum()) == 24  # two of ten in each of the twelve rows
    kept = x.grad != 0
    assert torch.equal(x.grad[kept], upstream[kept])
    assert (upstream.abs() * ~kept).amax(-1).le((upstream.abs() + 9 * ~kept).amin(-1)).all()

    model = TASKS["bytes"].build(16 * 4)
    layer = meprop(model, 0.25).blocks[0].up
    y = layer(torch.randn(2, 3, 64))
    y.backward(torch.randn_like(y))
    assert int((layer.bias.grad != 0).sum()) <= 6 * 64  # of 256 outputs a quarter a row
    dense = F.linear(torch.ones(1, 64), layer.weight, layer.bias)
    assert torch.equal(layer(torch.ones(1, 64)), dense)  # forward untouched


@pytest.mark.parametrize("image", [False, True])
def test_swat_is_its_definition(image: bool) -> None:
    layer: Any = nn.Conv2d(3, 5, 3, padding=1).double() if image else nn.Linear(7, 5).double()
    x = torch.randn(*((2, 3, 6, 6) if image else (4, 7)), dtype=torch.float64, requires_grad=True)

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, w, None, padding=1) if image else F.linear(x, w)

    y = SparseOperands.apply(x, layer.weight, product, 0.8, 0.3)
    kept = largest(layer.weight.detach().reshape(1, -1), 0.2).view_as(layer.weight)
    few = largest(x.detach().reshape(1, -1), 0.3).view_as(x)
    torch.testing.assert_close(y, product(x.detach(), kept))
    dy = torch.randn_like(y)
    y.backward(dy)
    a, b = few.requires_grad_(), kept.requires_grad_()
    wanted = torch.autograd.grad(product(a, b), (a, b), dy)
    torch.testing.assert_close(x.grad, wanted[0])
    torch.testing.assert_close(layer.weight.grad, wanted[1])
    assert int((layer.weight.grad != 0).sum()) > int((kept != 0).sum())  # all weights are trained


def test_swat_and_meprop_act_on_every_layer_that_is_sparse() -> None:
    for build in (lambda: ByteModel(64), lambda: ConvNet(32, 1, 10, (1, 2))):
        model = swat(build(), 0.9, 0.2)
        x = torch.randint(256, (2, 8)) if isinstance(model, ByteModel) else torch.randn(2, 1, 8, 8)
        model(x).sum().backward()
        names = topkast.masks(topkast.sparsify(build()))
        assert len(names) >= 4 and all(model.get_parameter(name).grad is not None for name in names)


def test_digits_are_split_in_two() -> None:
    images, classes, tests, wanted = digits()
    assert (len(images), len(tests)) == (899, 898) and images.shape[1:] == (1, 8, 8)
    assert images.min() >= -1 and images.max() <= 1 and set(classes.tolist()) == set(wanted.tolist()) == set(range(10))


def test_what_rates_are_chosen_on_is_neither_trained_on_nor_reported() -> None:
    images, classes, tests, wanted = digits()
    kept = TASKS["digits"].hold_out((images, classes, tests, wanted))
    assert (len(kept[0]), len(kept[2])) == (786, 113) and torch.equal(kept[2], images[::8])
    assert torch.equal(kept[3], classes[::8]) and torch.equal(kept[0][:7], images[1:8])
    text = TASKS["bytes"].load(None)
    held = TASKS["bytes"].hold_out(text)
    assert torch.equal(torch.cat([held.train, held.validation]), text.train)
    assert len(held.validation) == pytest.approx(len(text.train) / 8, abs=1)


@pytest.mark.parametrize("method", ["dense", "topkast"])
def test_matrices_and_the_rest_have_their_own_rates(method: str) -> None:
    run = canonical(Run("bytes", method, 1, 2, lr=0.1, lr_rest=0.2))
    model = prepare(run, TASKS["bytes"])
    matrices, rest = make_optimizer(run, model).param_groups
    assert (matrices["lr"], rest["lr"]) == (0.1, 0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = sorted(names.pop(id(parameter)) for parameter in matrices["params"])
    layers = [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("down", "out", "qkv", "up")]
    assert found == [*layers, "head.weight"]
    assert sorted(names) == sorted(id(parameter) for parameter in rest["params"])  # each once


@pytest.mark.parametrize("optimizer, initial", [("muon", None), ("nanogpt", "gpt2")])
def test_dense_recipes_move_every_parameter(optimizer: str, initial: str | None) -> None:
    run = canonical(Run("bytes", "dense", 1, 2, lr=0.01, lr_rest=0.02, optimizer=optimizer, initial=initial))
    model = prepare(run, TASKS["bytes"])
    if initial:
        deviations = [model.blocks[0].up.weight.std().item(), model.blocks[0].down.weight.std().item()]
        assert deviations == pytest.approx([0.02, 0.01], rel=0.02) and not model.head.bias.any()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    task = TASKS["bytes"]
    x, y = task.batch(task.load(None), torch.Generator().manual_seed(0), 2)
    train_step(model, make_optimizer(run, model), x, y)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)
    if optimizer == "muon":  # AdamW's first step would move each element by the rate, whatever the others do
        step = model.blocks[0].up.weight - before[[*dict(model.named_parameters())].index("blocks.0.up.weight")]
        largest_value = float(torch.linalg.matrix_norm(step.detach(), 2))
        assert largest_value == pytest.approx(0.01 * 0.2 * 512**0.5, rel=0.3)  # match_rms_adamw: 0.2 sqrt(longer side)
        moved_rows = (model.bytes.weight - before[0]).detach().abs()
        torch.testing.assert_close(moved_rows[x[0, 0]], torch.full((128,), 0.02), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_from_its_binary_version(classes: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    extra = 1 if classes == 10 else 2
    records = generator.integers(0, 256, (3, extra + 3072), dtype=np.uint8)
    records[:, extra - 1] = [0, 4, classes - 1]
    names = (
        [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        if classes == 10
        else ["train.bin", "test.bin"]
    )
    for name in names:
        (tmp_path / name).write_bytes(records.tobytes())
    images, found, tests, _ = cifar(classes, tmp_path)
    assert len(images) == 3 * (len(names) - 1) and len(tests) == 3
    assert found[:3].tolist() == [0, 4, classes - 1]
    wanted = records[1, extra:].reshape(3, 32, 32).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(images[1].numpy(), wanted)
    x, y = TASKS[f"cifar{classes}"].batch((images, found, tests, found), torch.Generator().manual_seed(0), 5)
    assert TASKS[f"cifar{classes}"].build(8)(x).shape == (5, classes) and y.shape == (5,)


def test_data_that_is_not_there_or_not_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"task cifar10: needs --data PATH, the folder of CIFAR-10's binary version"):
        cifar(10, None)
    with pytest.raises(StudyError, match=r"data_batch_1.bin: no such file"):
        cifar(10, tmp_path)
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(StudyError, match="3 bytes are not whole records of 3074"):
        cifar(100, tmp_path)


def test_the_large_text_task_is_that_of_the_trial() -> None:
    model = TASKS["bytes-large"].build(TASKS["bytes-large"].width)
    assert len(model.blocks) == 4 and model.blocks[0].up.weight.shape == (1024, 256)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not among the test extras")
@pytest.mark.parametrize("width", [64, 32])
def test_torchvisions_resnet(width: int) -> None:
    task = TASKS["digits-resnet"]
    model = task.build(width)
    x, y = task.batch(task.load(None), torch.Generator().manual_seed(0), 3)
    assert x.shape == (3, 3, 32, 32) and model(x).shape == (3, 10) and y.shape == (3,)
    assert model.layer4[0].conv2.weight.shape == (8 * width, 8 * width, 3, 3)
    assert len(topkast.masks(topkast.sparsify(model))) >= 9


def test_without_torchvision_its_task_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models.resnet", None)
    with pytest.raises(StudyError, match="task digits-resnet: needs torchvision, pip install torchvision"):
        TASKS["digits-resnet"].build(32)
