"""An interrupt before every line of a refresh, a load or a conversion: old or new, never both."""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim

import topkast
from topkast.runtime.state.find_sites import alive
from topkast.runtime.state.site import Site
from topkast.tests.compiler.checkpoint.test_checkpoint import same
from topkast.tests.support.interrupts import interrupt, moments
from topkast.tests.support.truth.lockstep import sites_of
from topkast.tools.fuzz.kinds.trained import net, trained

ROOT = Path(topkast.__file__).parent

# What is refreshed how, and of how many lines every which is tried: the lines of the later ones are mostly the first's.
RULES: dict[str, tuple[dict[str, Any], int]] = {
    "topk": ({}, 1),
    "host": ({"reservoir": "host", "block": (4, 2), "balanced": False}, 3),
    "background": ({"refresh_in_background": True}, 2),
    "set": ({"method": "set", "bwd": None}, 4),
}


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a run goes on from: tensors, clock, optimizer, by what it belongs to."""
    found = {key: value.clone() for key, value in model.state_dict().items()}
    state: dict[str, Any] = {f"{name} {kind}": value for name, kind, value in _moments(model, optimizer)}
    for name, site in sites_of(model).items():
        state[f"{name} python"] = [site.step, site.refreshed_at, list(site.churn), site.rule, site.broken]
        state[f"{name} asked"] = site.pending is not None
    return {"model": found, "optimizer": state}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, str, Tensor]]:
    return [
        (name, kind, value.clone())
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    ]


def per_site(state: dict[str, Any], name: str) -> list[Any]:
    """What of a state is one site's."""
    prefix = name.replace("weight", "sparse_state.weight")
    return [{k: v for k, v in part.items() if k.startswith((prefix, name))} for part in state.values()]


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
def test_a_refresh_is_whole_at_every_line(rule: str) -> None:
    """Each site has its old sets or its new ones, and training goes on as if nothing had been."""
    options, every = RULES[rule]
    model, optimizer = trained(**options)

    def refresh(model: nn.Module) -> Callable[[], Any]:
        return lambda: model(torch.ones(2, 12))

    old = everything(model, optimizer)
    when = moments(refresh(model), ("runtime",))
    new = everything(model, optimizer)
    assert not same(old, new) and len(when) > 60
    again, mine = trained(**options)
    assert same(everything(again, mine), old)
    kept = copy.deepcopy((again.state_dict(), mine.state_dict()))
    seen = [0, 0]
    for at in when[::every]:
        for site in sites_of(again).values():
            site.turnover = []
        again.load_state_dict(kept[0])
        mine.load_state_dict(copy.deepcopy(kept[1]))
        if not interrupt(refresh(again), at, ("runtime",)):
            continue
        now = everything(again, mine)
        for name in sites_of(again):
            is_old, is_new = (same(per_site(now, name), per_site(state, name)) for state in (old, new))
            assert is_old or is_new, f"line {at}: {name} is half refreshed"
            seen[is_new] += 1
        refresh(again)()
        assert torch.is_grad_enabled()
        assert same(everything(again, mine), new), f"line {at}: the refresh does not go on as it would have"
    assert min(seen) > 0


def checkpoint(path: Path) -> dict[str, Any]:
    """A file to load: what it holds is what the model is afterwards."""
    model, optimizer = trained(4, seed=5)
    topkast.save(model, path, optimizer)
    return everything(model, optimizer)


@pytest.mark.long
# An interrupt between opening a file and `with` leaves the file to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_load_is_whole_at_every_line(tmp_path: Path) -> None:
    new = checkpoint(tmp_path / "file")
    model, optimizer = trained()
    old = everything(model, optimizer)
    kept = tmp_path / "kept"
    topkast.save(model, kept, optimizer)
    when = moments(lambda: topkast.load(model, tmp_path / "file", optimizer))
    assert same(everything(model, optimizer), new) and not same(old, new)
    seen = [0, 0]
    for at in when:
        topkast.load(model, kept, optimizer)
        assert interrupt(lambda: topkast.load(model, tmp_path / "file", optimizer), at)
        now = everything(model, optimizer)
        is_old, is_new = same(now, old), same(now, new)
        assert is_old or is_new, f"line {at}: half loaded"
        assert torch.is_grad_enabled()
        seen[is_new] += 1
    assert min(seen) > 20


@pytest.mark.long
def test_loading_dense_weights_is_whole_at_every_line() -> None:
    dense = net(7).state_dict()
    model, optimizer = trained()
    old, kept = everything(model, optimizer), copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    turnover = {name: list(site.turnover) for name, site in sites_of(model).items()}
    when = moments(lambda: topkast.load_dense_state_dict(model, dense))
    new = everything(model, optimizer)
    assert same(topkast.dense_state_dict(model, "all"), dense) and not same(old, new)
    seen = [0, 0]
    for at in when:
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(copy.deepcopy(kept[1]))
        for name, site in sites_of(model).items():
            site.turnover = list(turnover[name])
        assert interrupt(lambda: topkast.load_dense_state_dict(model, dense), at)
        now = everything(model, optimizer)
        is_old, is_new = same(now, old), same(now, new)
        assert is_old or is_new, f"line {at}: half loaded"
        assert torch.is_grad_enabled()
        seen[is_new] += 1
    assert min(seen) > 20


class Odd(nn.Module):
    """A tie, a weight that is a view of larger memory, a gradient that waits, a hook, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.first.weight = nn.Parameter(torch.randn(12, 6)[:6])
        self.second.weight = self.first.weight
        self.third = nn.Linear(6, 8)
        self.third.weight = nn.Parameter(torch.randn(6, 8).t())
        self.recurrent = nn.GRU(8, 4, batch_first=True)
        self.third.register_forward_hook(lambda module, args, out: out * 2)
        self.third.weight.grad = torch.ones(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(self.third(self.second(self.first(x)).relu()))[0]


def looks(model: nn.Module) -> list[Any]:
    """What a user can see of a model."""
    return [
        *((name, type(module), sorted(vars(module))) for name, module in model.named_modules()),
        *((name, id(p), p.data.clone(), p.stride(), p.grad) for name, p in model.named_parameters()),
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
    ]


@pytest.mark.long
def test_a_conversion_is_whole_at_every_line(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    model, x = Odd(), torch.randn(2, 3, 6)
    options: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "min_size": 1, "initial": "random", "seed": 1}
    options |= {"backend": "eager"}

    def convert() -> nn.Module:
        return topkast.compile(model, **options)

    old, base = looks(model), model.first.weight.untyped_storage().data_ptr()
    before, hooks = model(x), _hooks()
    other = topkast.compile(copy.deepcopy(model), **options)
    new = {key: value.clone() for key, value in other.state_dict().items()}
    del other
    inside = (
        *(f"compiler/{file}.py" for file in ("compile", "backend")),
        *(f"compiler/convert/{file}.py" for file in ("sparsify", "undo", "attach", "initial")),
        *(f"runtime/state/{file}.py" for file in ("site", "site_module", "content/parts", "change/commit", "model")),
        "runtime/training/optimizer_hooks.py",
    )
    assert all((ROOT / file).is_file() for file in inside)
    seen = [0, 0]
    when = moments(lambda: topkast.compile(copy.deepcopy(model), **options), inside)
    gc.freeze()  # what other tests have left need not be looked through some 800 times
    request.addfinalizer(gc.unfreeze)
    for at in when:
        assert interrupt(convert, at, inside)
        gc.collect()
        converted = "_topkast" in vars(model)
        seen[converted] += 1
        if converted:
            assert same(dict(model.state_dict()), new), f"line {at}: converted in part"
            torch.manual_seed(0)
            model = Odd()
            old, base = looks(model), model.first.weight.untyped_storage().data_ptr()
        else:
            assert same(looks(model), old), f"line {at}: neither as it was nor converted"
            assert model.first.weight.untyped_storage().data_ptr() == base
            assert not [site for site in alive() if site.name.startswith(("first", "third", "recurrent"))]
            assert torch.equal(model(x), before)
        assert torch.is_grad_enabled()
    assert min(seen) > 5
    assert _hooks() <= hooks + 3, "a hook is registered twice"


def _hooks() -> int:
    module = nn.modules.module
    return (
        len(optim._global_optimizer_pre_hooks)
        + len(optim._global_optimizer_post_hooks)
        + len(module._global_module_registration_hooks)
    )


def test_a_copy_that_fails_marks_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be made of it any more, and every use says so; the other site goes on."""
    model, optimizer = trained()
    site = sites_of(model)["0.weight"]

    def fails(*args: Any) -> None:
        raise OSError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(Site, "write", fails)
        with pytest.raises(OSError, match="disk on fire"):
            site.refresh()
    sites_of(model)["2.weight"].refresh()
    uses: list[Callable[[], Any]] = [
        lambda: model(torch.ones(2, 12)),
        lambda: topkast.refresh(model),
        lambda: topkast.masks(model),
        lambda: topkast.dense_state_dict(model),
        lambda: topkast.dense_state_dict(model, "all"),
        model.state_dict,
        optimizer.step,
        lambda: topkast.step(model, lr=0.1),
    ]
    for use in uses:
        with pytest.raises(topkast.ModelError, match=r"0\.weight: a change of its sets failed in the middle"):
            use()


@pytest.fixture
def default_ctrl_c() -> Iterator[None]:
    """A process that was started in the background may ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_refreshing(default_ctrl_c: None) -> None:
    """Real signals at random moments, while B is drawn anew again and again: θ is what it was, bit for bit."""
    model = topkast.sparsify(nn.Sequential(nn.Linear(512, 256)), 0.8, 0.5, explore="random", seed=1, initial=None)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)  # its moments move with the weights, which takes time
    model(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    (site,) = sites_of(model).values()
    site.refresh()
    before, fwd = site.theta(), site.sets()[0]
    generator, arrived = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        wait = 0.001 + 0.01 * float(torch.rand(1, generator=generator))
        shot = threading.Timer(wait, lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            shot.start()
            end = time.monotonic() + 2  # Python drops what comes while an object is finalised
            while time.monotonic() < end:
                site.step += 1  # another draw
                site.refresh()
        except KeyboardInterrupt:
            arrived += 1
        shot.join()
    assert arrived > 200
    assert torch.equal(site.theta(), before) and torch.equal(site.sets()[0], fwd)
