"""A conversion that is under way, or has failed, is nobody else's affair: whole sites alone are seen."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime.kernels import sets as set_kernels
from topkast.runtime.state import site as site_file
from topkast.runtime.state.content.reservoirs import OnDevice
from topkast.runtime.state.find_sites import alive
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sites_of

OPTIONS: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "min_size": 1}


def step(model: nn.Module) -> dict[str, torch.Tensor]:
    """One step of SGD as plain PyTorch has it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 20)).sum().backward()
    optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("when", ["store", "allocate", "build_index"])
def test_a_conversion_that_failed_is_forgotten(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that is still held holds the site, and the model trains on as a dense one."""
    model, calls = CASES["mlp"].model(), []
    place = {"store": site_file, "allocate": OnDevice, "build_index": set_kernels}[when]
    real = getattr(place, when)

    def fails(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no room")
        return real(*args)

    monkeypatch.setattr(place, when, fails)
    with pytest.raises(MemoryError, match="no room") as caught:
        topkast.compile(model, **OPTIONS)
    assert caught.value.__traceback__ is not None
    expected = step(CASES["mlp"].model())
    found = step(model)
    assert {key: torch.equal(value, expected[key]) for key, value in found.items()} == dict.fromkeys(expected, True)
    monkeypatch.undo()
    assert len(sites_of(topkast.compile(model, **OPTIONS, backend="eager"))) == 3


def test_a_conversion_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread makes a site, steps go on here, of dense models and of sparse ones."""
    inside, go_on, real = threading.Event(), threading.Event(), site_file.store

    def waits(*args: Any) -> None:
        inside.set()
        go_on.wait(30)
        real(*args)

    sparse = topkast.sparsify(CASES["mlp"].model(), **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(site_file, "store", waits)
        other = CASES["mlp"].model()
        thread = threading.Thread(target=topkast.sparsify, args=(other,), kwargs=OPTIONS)
        thread.start()
        assert inside.wait(30)
        before = len(alive())
        step(CASES["mlp"].model())
        step(sparse)
        go_on.set()
        thread.join()
    assert {site.step for site in sites_of(sparse).values()} == {1}
    assert {site.step for site in sites_of(other).values()} == {0} and len(alive()) == before + 3


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_many_conversions_in_another_thread(backend: str) -> None:
    """Each traces a model and enrols its sites, while a model is trained here."""
    errors: list[BaseException] = []

    def convert() -> None:
        try:
            for _ in range(20):
                topkast.sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), **OPTIONS)
        except BaseException as error:
            errors.append(error)

    sparse = topkast.compile(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), **OPTIONS, backend=backend)
    optimizer, steps = torch.optim.SGD(sparse.parameters(), 0.1), 0
    thread = threading.Thread(target=convert)
    while steps == 0 or thread.is_alive():
        sparse(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        steps += 1
        if steps == 1:
            thread.start()
    thread.join()
    assert not errors and {site.step for site in sites_of(sparse).values()} == {steps}
