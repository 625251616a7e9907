"""A fork and a reservoir on disk: neither process changes the other one's θ, whichever writes first."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd, sites_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
CASE = CASES["mlp"]
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 1, "min_size": 1, "backend": "eager"}
State = dict[str, Tensor]


def built(seed: int = 0, **options: Any) -> nn.Module:
    return topkast.compile(CASE.model(seed), **{**SPARSE, "reservoir": "disk", **options})


def state(model: nn.Module) -> State:
    return {key: value.clone() for key, value in topkast.dense_state_dict(model, values="all").items()}


def train(model: nn.Module, steps: int = 4) -> None:
    optimizer = sgd(list(model.parameters()))
    for args, target in CASE.batches(steps):
        optimizer.zero_grad()
        CASE.loss(model(*args), target).backward()
        optimizer.step()


def loaded(model: nn.Module) -> None:
    model.load_state_dict(built(seed=3).state_dict())


def loaded_dense(model: nn.Module) -> None:
    topkast.load_dense_state_dict(model, CASE.model(4).state_dict())


def averaged(model: nn.Module) -> None:
    """The average's reservoir was mapped before the fork as well; its model's is only read."""
    average = model.__dict__["average"]
    train(model, 3)
    average.update_parameters(model)
    average.update_parameters(model)


WRITES: dict[str, Callable[[nn.Module], None]] = {
    "training": train,
    "load_state_dict": loaded,
    "load_dense_state_dict": loaded_dense,
    "refresh": lambda model: (train(model, 1), topkast.refresh(model)),  # type: ignore[dict-item]
    "an average": averaged,
}


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    while waiting:
        pid = waiting.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


waiting: list[int] = []


class Child:
    """A forked process that waits for a line, does something, and sends what came of it."""

    def __init__(self, do: Callable[[], Any]) -> None:
        (self.answer, there), (here, self.go) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on says of threads what pytest knows
            self.pid = os.fork()
        if self.pid == 0:
            try:
                torch.set_num_threads(1)  # OpenMP's threads did not come along
                os.read(here, 1)
                with os.fdopen(there, "wb") as file:
                    pickle.dump(do(), file)
            finally:
                sys.stderr.flush()
                os._exit(0)
        waiting.append(self.pid)
        os.close(there)
        os.close(here)

    def result(self) -> Any:
        os.write(self.go, b"\n")
        with os.fdopen(self.answer, "rb") as file:
            found = pickle.load(file)
        os.close(self.go)
        os.waitpid(self.pid, 0)
        waiting.remove(self.pid)
        return found


def after(model: nn.Module, do: Callable[[nn.Module], None]) -> list[dict[str, Any]]:
    do(model)
    found = [model, *([model.__dict__["average"]] if "average" in model.__dict__ else [])]
    return [{key: value.numpy() for key, value in state(each).items()} for each in found]


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all((mine[key] == theirs[key]).all() for mine, theirs in pairs for key in mine)


def ready(average: bool) -> nn.Module:
    model = built()
    if average:
        model.__dict__["average"] = AveragedModel(model)
        model.__dict__["average"].update_parameters(model)
    return model


def nothing(model: nn.Module) -> None:
    pass


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("first", ["the child", "the parent"])
def test_neither_changes_the_other(name: str, first: str) -> None:
    """Both write, the one after the other, then the first once more; each has what it would have alone."""
    average = name == "an average"
    expected = after(ready(average), WRITES[name])
    before = after(ready(average), nothing)
    model = ready(average)
    write, keep = WRITES[name], nothing
    assert not same(before, expected)
    writer, reader = Child(lambda: after(model, write)), Child(lambda: after(model, keep))
    if first == "the child":
        assert same(writer.result(), expected)
        assert same(after(model, keep), before)
        assert same(after(model, write), expected)
    else:
        assert same(after(model, write), expected)
        assert same(writer.result(), expected)
        assert same(after(model, keep), expected)
    assert same(reader.result(), before)


def test_a_file_of_its_own_once_a_fork() -> None:
    """Only who writes copies, and only once."""
    model = built()
    held = [site.reservoir for site in sites_of(model).values()]
    Child(lambda: None).result()
    model(*CASE.batches(1)[0][0])
    state(model)
    assert all(site.reservoir is one for site, one in zip(sites_of(model).values(), held, strict=True))
    topkast.refresh(model)
    moved = [site.reservoir for site in sites_of(model).values()]
    assert not {tensor.data_ptr() for tensor in moved} & {tensor.data_ptr() for tensor in held}
    topkast.refresh(model)
    assert all(site.reservoir is one for site, one in zip(sites_of(model).values(), moved, strict=True))


def test_other_reservoirs_stay_where_they_are() -> None:
    model = built(reservoir="host")
    held = [site.reservoir.data_ptr() for site in sites_of(model).values()]
    Child(lambda: None).result()
    topkast.refresh(model)
    assert held == [site.reservoir.data_ptr() for site in sites_of(model).values()]
