"""What holds for several models, threads and processes: the promises of docs/user/at-the-same-time.md."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import topkast
from topkast.runtime.optimizers.sandbox import undisturbed
from topkast.tools.fuzz.kinds.trained import assert_sound, everything, same, train, trained


def test_many_models_in_one_process_do_not_touch_each_other() -> None:
    alone = [everything(*trained(6, seed=seed)) for seed in range(4)]
    several = [trained(0, seed=seed) for seed in range(4)]
    generators = [torch.Generator().manual_seed(seed + 1) for seed in range(4)]
    for _ in range(6):
        for (model, optimizer), generator in zip(several, generators, strict=True):
            model(torch.randn(5, 12, generator=generator)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(same(everything(*one), other) for one, other in zip(several, alone, strict=True))


def test_each_thread_trains_a_model_of_its_own() -> None:
    alone = [everything(*trained(8, seed=seed)) for seed in range(3)]
    several, failed = [trained(0, seed=seed) for seed in range(3)], list[BaseException]()

    def run(number: int) -> None:
        try:
            train(*several[number], 8, number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(same(everything(*one), other) for one, other in zip(several, alone, strict=True))


def test_threads_may_evaluate_one_model() -> None:
    model, _ = trained()
    model.eval()
    x, wrong = torch.ones(3, 12), list[int]()
    with torch.no_grad():
        wanted = model(x)

    def run() -> None:
        with torch.no_grad():
            wrong.extend(1 for _ in range(20) if not torch.equal(model(x), wanted))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Batches(torch.utils.data.Dataset[torch.Tensor]):
    """Batches that a worker makes with a sparse model that it got by the fork."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.full((12,), float(at)))


def test_workers_of_a_data_loader_may_use_a_model_of_their_own() -> None:
    model, optimizer = trained()
    teacher, _ = trained(4, seed=3)
    teacher.eval()
    before = everything(teacher)
    with torch.no_grad():
        wanted = [teacher(torch.full((12,), float(at))) for at in range(4)]
    for _ in range(2):
        batches = list(DataLoader(Batches(teacher), batch_size=None, num_workers=1, multiprocessing_context="fork"))
        assert all(map(torch.equal, batches, wanted))
        train(model, optimizer, 2)
    assert_sound(model)
    assert same(everything(teacher), before)


def summed(model: nn.Module) -> str:
    return repr([float(value.double().sum()) for value in topkast.dense_state_dict(model).values()])


def test_a_fork_trains_on_as_its_parent_does() -> None:
    model, optimizer = trained()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        train(model, optimizer, 5, 9)
        os.write(
            writing,
            summed(model).encode(),
        )
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    train(model, optimizer, 5, 9)
    assert os.read(reading, 1000).decode() == summed(model)
    os.close(reading)
    os.close(writing)


def _spawned(model: nn.Module, pipe: Any) -> None:
    with torch.no_grad():
        out = model(torch.ones(2, 12))
    mine = copy.deepcopy(model)  # PyTorch shares the memory of what it sends
    train(mine, torch.optim.AdamW(mine.parameters(), 0.1), 4)
    assert_sound(mine)
    pipe.send(out.tolist())


@pytest.mark.long  # the process imports everything again
def test_a_model_goes_to_a_process_that_was_spawned() -> None:
    model, _ = trained()
    model.eval()
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_spawned, args=(model, there))
    process.start()
    found = here.recv() if here.poll(120) else None
    process.join(120)
    assert process.exitcode == 0
    with torch.no_grad():
        assert found == model(torch.ones(2, 12)).tolist()


def test_threads_that_try_out_optimizers_leave_compiling_switched_on() -> None:
    """By turns, the second would put back what the first had set, and nothing in the process would compile any more."""
    entered = threading.Event()

    def first() -> None:
        with undisturbed(torch.device("cpu"), torch.optim.SGD):
            entered.set()
            time.sleep(0.1)

    def second() -> None:
        entered.wait()
        with undisturbed(torch.device("cpu"), torch.optim.SGD):
            time.sleep(0.2)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch._dynamo.eval_frame._stance.stance == "default"
