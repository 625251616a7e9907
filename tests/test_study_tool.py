"""tools/study.py: grids, data, references and figures one by one, and one small grid of the whole."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study
import torch
import torch.nn.functional as F
from _study_data import cifar, digits, enwik8, wikitext103
from _study_models import ByteModel, ConvNet, width_for
from _study_references import SparseGradient, SparseOperands, largest, layers_of, meprop, swat
from _study_run import Run, StudyError, canonical, read_grid
from _study_store import read
from _study_table import estimate, rows
from _study_tasks import TASKS
from _study_train import flops_share, prepare, schedule, train
from torch import nn

import topkast

SMALL = """
[base]
task = "digits"
steps = 30
batch = 16
lr = 5e-3
fwd = 0.8
refresh_every = 10

[axes]
seed = [0, 1]

[arms.topkast]
method = "topkast"

[arms.rigl]
method = "rigl"

[arms."topkast again"]
method = "topkast"
"""


def grid(tmp_path: Path, text: str = SMALL) -> str:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return str(path)


def test_a_small_grid(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two methods, two seeds: it learns, the same grid gives the same figures, and nothing is trained twice."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for results in (first, second):
        assert study.main(["run", grid(tmp_path), "--results", str(results)]) == 0
    one, other = read(first), read(second)
    assert len(one) == 4 and one.keys() == other.keys()  # the third arm is the first
    for key, result in one.items():
        for name in ("quality", "nats", "training loss", "flops", "bytes", "parameters"):
            assert result[name] == other[key][name], name
        assert result["training loss"] < 0.7 * math.log(10)
        assert 0 < result["flops"] < 1 and result["seconds"] > 0 and result["cpu_seconds"] > 0
    assert len({result["nats"] for result in one.values()}) == 4
    before = first.read_text()
    assert study.main(["run", grid(tmp_path), "--results", str(first)]) == 0
    assert first.read_text() == before
    first.write_text(before[:-40])  # stopped in the middle of a line
    assert study.main(["run", grid(tmp_path), "--results", str(first)]) == 0
    again = read(first)
    assert {key: result["nats"] for key, result in again.items()} == {key: r["nats"] for key, r in one.items()}

    capsys.readouterr()
    assert study.main(["table", grid(tmp_path), "--results", str(first)]) == 0
    shown = capsys.readouterr().out
    assert "test error, %" in shown and "less topkast" in shown and "+0.000 ± 0.000" in shown
    assert study.main(["plot", grid(tmp_path), "--results", str(first), "--out", str(tmp_path / "plots")]) == 0
    assert (tmp_path / "plots" / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_a_pool_of_processes(tmp_path: Path) -> None:
    """Results come in any order and are those of one process."""
    text = SMALL.replace("steps = 30", "steps = 2").replace("[0, 1]", "[0]")
    alone, pool = tmp_path / "alone.jsonl", tmp_path / "pool.jsonl"
    assert study.main(["run", grid(tmp_path, text), "--results", str(alone)]) == 0
    assert study.main(["run", grid(tmp_path, text), "--results", str(pool), "--workers", "2"]) == 0
    wanted, found = read(alone), read(pool)
    assert {key: result["nats"] for key, result in found.items()} == {key: r["nats"] for key, r in wanted.items()}


def test_the_grids_that_are_here_are_sound() -> None:
    for path in (Path(study.HERE) / "grids").glob("*.toml"):
        found = read_grid(path)
        assert len({run.key for _, run in found}) == len(found)  # no arm is another one under a second name
        for _, run in found:
            assert run.task in TASKS


def test_what_a_method_does_not_use_makes_no_other_run() -> None:
    common: dict[str, Any] = {"task": "digits", "steps": 10, "batch": 4, "lr": 0.1}
    runs = [canonical(Run(method="static", refresh_every=every, **common)) for every in (10, 20)]
    assert runs[0].key == runs[1].key
    assert "refresh_every" not in runs[0].options()
    runs = [canonical(Run(method="set", refresh_every=every, **common)) for every in (10, 20)]
    assert runs[0].key != runs[1].key
    gradual = canonical(Run(method="gmp", stop_exploring_after=0.75, **common))
    assert gradual.options()["stop_exploring_after"] == 8  # a share of the steps


@pytest.mark.parametrize(
    "text, message",
    [
        ("[base", "small.toml"),
        ("[base]\nsteps = 1", r"no \[arms.NAME\]"),
        ("[extra]\n[arms.a]", "unknown tables extra"),
        (SMALL + "lrate = 3", "unknown lrate; a run has task, method"),
        (SMALL.replace('"rigl"', '"wiggle"'), "method='wiggle': must be one of topkast, static"),
        (
            SMALL.replace("batch = 16", 'optimizer = "lbfgs"\nbatch = 16'),
            "optimizer='lbfgs': must be one of adamw, sgd",
        ),
        (SMALL.replace("steps = 30", ""), "steps"),
        (SMALL.replace('"digits"', '"chess"'), "task='chess': must be one of bytes"),
        (SMALL.replace('"digits"', '"enwik8"'), "task enwik8: needs --data PATH, the file enwik8"),
    ],
)
def test_bad_grids_say_what_is_allowed(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert study.main(["run", grid(tmp_path, text), "--results", str(tmp_path / "r.jsonl")]) == 2
    assert re.search(message, capsys.readouterr().out)


def test_a_run_that_fails_is_named_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = SMALL.replace("[0, 1]", "[0]").replace("steps = 30", "steps = 2") + "block = '999x999'\n"
    results = tmp_path / "r.jsonl"
    assert study.main(["run", grid(tmp_path, text), "--results", str(results)]) == 1
    assert "digits, topkast, seed 0: ConfigError" in capsys.readouterr().out
    assert len(read(results)) == 2


def test_a_broken_file_of_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"run": {}}\n{}\n')
    with pytest.raises(StudyError, match="line 1 is not a run of this study"):
        read(path)


def test_a_diverged_run_is_counted(tmp_path: Path) -> None:
    run = canonical(Run(task="digits", method="dense", steps=20, batch=16, lr=1e18, optimizer="sgd"))
    result = train(run)
    assert result["quality"] is None and result["nats"] is None
    (row,) = rows([("dense", run)], {run.key: json.loads(json.dumps(result))})
    assert row.diverged == 1 and not row.qualities


def test_estimate() -> None:
    """Against the textbook: n = 4, t = 3.182."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.count) == (2.5, 4)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    assert found.half == pytest.approx(3.182446 * found.deviation / 2, rel=1e-6)
    assert math.isnan(estimate([1.0]).half) and str(estimate([1.0])) == "1.000"


def test_differences_are_paired_by_seed() -> None:
    """An arm that is better by 1 on every seed is so without doubt, however far the seeds lie apart."""
    common: dict[str, Any] = {"task": "digits", "steps": 1, "batch": 1, "lr": 0.1}
    grid, held = [], {}
    for seed in range(3):
        for arm, method, shift in (("a", "dense", 0.0), ("b", "static", -1.0)):
            run = canonical(Run(method=method, seed=seed, **common))
            grid.append((arm, run))
            held[run.key] = {"quality": 10.0 * seed + shift, "flops": 1, "bytes": 1, "cpu_seconds": 1}
    first, second = rows(grid, held)
    gap = second.against(first)
    assert gap is not None and (gap.mean, gap.deviation, gap.half) == (-1.0, 0.0, 0.0)


def test_schedule() -> None:
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[0] == 0.1 and max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and 0.05 < factors[-1] < 0.06


def test_same_size_dense() -> None:
    task = TASKS["bytes"]
    run = canonical(Run(task="bytes", method="small-dense", steps=1, batch=1, lr=0.1))
    sparse = topkast.sparsify(task.build(task.width), fwd=0.9)
    used = sum(int(fwd.sum()) for fwd, _ in topkast.masks(sparse).values())
    rest = sum(p.numel() for p in sparse.parameters()) - sum(int(b.sum()) for _, b in topkast.masks(sparse).values())
    small = prepare(run, task)
    have = sum(p.numel() for p in small.parameters())
    step = sum(p.numel() for p in task.build(52).parameters()) - sum(p.numel() for p in task.build(48).parameters())
    assert abs(have - (used + rest)) <= step  # as near as a width gets
    assert width_for(lambda width: nn.Linear(width, 10, bias=False), 71, 1, 50) == 7


def test_flops() -> None:
    task = TASKS["digits"]
    dense = sum(layer.weight.numel() for layer in layers_of(task.build(task.width)))
    common: dict[str, Any] = {"task": "digits", "steps": 10, "batch": 4, "lr": 0.1}
    for method, wanted in (
        ("topkast", 0.4 / 3),
        ("static", 0.1),
        ("magnitude-ste", 0.4),
        ("dense", 1),
        ("swat", 0.4 / 3),
    ):
        run = canonical(Run(method=method, **common))
        assert flops_share(run, prepare(run, task), dense) == pytest.approx(wanted, abs=2e-4), method


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
    with pytest.raises(StudyError, match="no such file or folder"):
        enwik8(tmp_path / "absent")
    with pytest.raises(StudyError, match=r"wiki.train.raw: no such file"):
        wikitext103(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(StudyError, match="3 bytes are not whole records of 3074"):
        cifar(100, tmp_path)


def test_texts_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "enwik8").write_bytes(bytes(range(200)) * 10)
    text = enwik8(tmp_path / "enwik8")
    assert len(text.train) == 1800 and len(text.validation) == 100
    for part in ("train", "valid"):
        (tmp_path / f"wiki.{part}.raw").write_bytes(b"some words " * 20)
    text = wikitext103(tmp_path)
    x, y = TASKS["wikitext103"].batch(text, torch.Generator().manual_seed(0), 2)
    assert x.shape == (2, 64) and torch.equal(x[:, 1:], y[:, :-1])
