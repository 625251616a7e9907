"""Rebuild a user's optimizer on small tensors, so that its steps can be tried out.

The constructor is not called if this can be avoided, because its arguments are not known. A copy shares nothing that a
step would write: it has its own groups, state, tensors and inner optimizers, and it has no hooks.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
import threading
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

# How a step is computed. This does not change the optimizer's rule, and on the CPU some of these settings are refused.
MEANS = ("foreach", "fused", "capturable", "differentiable")
HOOKS = "_optimizer_"  # start of the names of attributes that hold the hooks of one optimizer
# All that `undisturbed` changes belongs to the whole process. Two threads that change it by turns would each put back
# what the other had set: compiling stayed switched off.
ONE_AT_A_TIME = threading.RLock()
SCALED = ("grad_scale", "found_inf")  # set by a GradScaler while a step runs


class Entries(dict[str, Any]):
    """The state of one parameter. It keeps a copy of each entry's first value, because a step changes entries later."""

    def __init__(self, *args: Any, **entries: Any) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}
        self.update(*args, **entries)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.first:
            self.first[name] = value.detach().clone() if isinstance(value, Tensor) else value
        super().__setitem__(name, value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *args: Any, **entries: Any) -> None:
        for name, value in dict(*args, **entries).items():
            self[name] = value


class Sandbox:
    """One optimizer on small tensors.

    Args:
        source: the user's optimizer; it is not changed.
        parameter: the parameter of ``source`` that the first small tensor represents.
        tensors: the small tensors; all of them are in one group, with the settings of the parameter's group.
        settings: replace settings of the group, if the group has settings of these names.
        rebuild: call the constructor, with the settings as arguments, instead of copying.
    """

    def __init__(
        self,
        source: Optimizer,
        parameter: nn.Parameter,
        tensors: list[nn.Parameter],
        settings: dict[str, Any],
        rebuild: bool = False,
    ) -> None:
        self.parameter, self.tensors, self.settings, self.rebuild = parameter, tensors, settings, rebuild
        self.copies: dict[int, Any] = {id(parameter): tensors[0]}
        self.optimizer = self._built(source) if rebuild else self._copied(source)
        train = getattr(self.optimizer, "train", None)
        if callable(train):  # schedule-free optimizers need this call before a step
            train()

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def state(self) -> dict[str, Any]:
        """The state of the first tensor, no matter which of the optimizers keeps it."""
        found: dict[str, Any] = {}
        for optimizer in self._all():
            found |= optimizer.state.get(self.tensors[0], {})
        return found

    def first(self) -> dict[str, Any]:
        """:meth:`state`, with each entry as it was when it was made."""
        found: dict[str, Any] = {}
        for optimizer in self._all():
            found |= getattr(optimizer.state.get(self.tensors[0], {}), "first", {})
        return found

    def _all(self) -> list[Optimizer]:
        return [one for one in self.copies.values() if isinstance(one, Optimizer)]

    def _copied(self, source: Optimizer) -> Optimizer:
        if id(source) in self.copies:
            return self.copies[id(source)]
        twin = self.copies[id(source)] = source.__class__.__new__(source.__class__)
        own = vars(source)
        if isinstance(own.get("param_groups"), list):
            self._groups(own["param_groups"])
        for name, value in own.items():
            if name == "state":
                whole = {key: self._mirrored(one) for key, one in value.items() if not isinstance(key, Tensor)}
                vars(twin)[name] = defaultdict(Entries, whole)
            elif name.startswith(HOOKS) and isinstance(value, dict):
                vars(twin)[name] = OrderedDict()
            elif name == "defaults" and isinstance(value, dict):
                vars(twin)[name] = self._set({key: self._mirrored(one) for key, one in value.items()})
            elif name not in SCALED and not (callable(value) and callable(getattr(type(source), name, None))):
                vars(twin)[name] = self._mirrored(value)
        return _alone(twin)

    def _groups(self, groups: list[dict[str, Any]]) -> None:
        # Objects that share the list, a group or its parameters with the source share the copies of these.
        mine = self.copies.setdefault(id(groups), [])
        for group in groups:
            if id(group) not in self.copies and any(one is self.parameter for one in group["params"]):
                copied = {name: self._mirrored(value) for name, value in group.items() if name != "params"}
                if "param_names" in copied:
                    copied["param_names"] = [str(number) for number in range(len(self.tensors))]
                self.copies[id(group)] = self._set({"params": self.tensors, **copied})
                self.copies[id(group["params"])] = self.tensors
                mine.append(self.copies[id(group)])

    def _set(self, settings: dict[str, Any]) -> dict[str, Any]:
        return settings | {name: value for name, value in self.settings.items() if name in settings}

    def _mirrored(self, value: Any) -> Any:
        if id(value) in self.copies:
            return self.copies[id(value)]
        if isinstance(value, nn.Parameter):
            return self.tensors[-1]  # represents any other parameter
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, Optimizer):
            return self._copied(value)
        if isinstance(value, (random.Random, torch.Generator)):
            return copy.copy(value) if isinstance(value, random.Random) else value.clone_state()
        if isinstance(value, dict):
            twin = copy.copy(value)
            twin.clear()
            twin.update({self._mirrored(key): self._mirrored(one) for key, one in value.items()})
            return twin
        if type(value) in (list, tuple, set):
            return type(value)(self._mirrored(one) for one in value)
        return value

    def _built(self, source: Optimizer) -> Optimizer:
        """Call the constructor. Its arguments are the settings or attributes with the same names."""
        first, *names = list(inspect.signature(type(source)).parameters)
        known = {**vars(source), **getattr(source, "defaults", {}), **group_of(source, self.parameter)}
        given = self._set({name: known[name] for name in names if name in known})
        own = known.get(first)
        over: Any = self._built(own) if isinstance(own, Optimizer) else self.tensors
        built = type(source)(over, **given)
        for key, entries in list(built.state.items()):
            if isinstance(key, Tensor):
                built.state[key] = Entries(entries)
        built.state.default_factory = Entries
        self.copies[id(source)] = _alone(built)
        return built


def group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The group that a parameter is in."""
    return next(group for group in optimizer.param_groups if any(one is parameter for one in group["params"]))


def _alone(optimizer: Optimizer) -> Optimizer:
    """Make the optimizer's step run no hook, no matter who calls the step."""
    step = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    optimizer.step = functools.partial(step, optimizer)  # type: ignore[method-assign, assignment]
    return optimizer


@contextlib.contextmanager
def undisturbed(device: torch.device, kind: type) -> Iterator[None]:
    """Inside the ``with``, steps on this device change nothing else: random numbers, default device and global hooks.

    Another thread that comes here waits.

    Args:
        kind: the class of the optimizer that makes the steps.
    """
    with ONE_AT_A_TIME:
        yield from _undisturbed(device, kind)


def _undisturbed(device: torch.device, kind: type) -> Iterator[None]:
    steps = [vars(base)["step"] for base in kind.__mro__ if "step" in vars(base)]
    pre, post = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
    state = random.getstate()
    devices = [] if device.type == "cpu" else [device]
    try:
        # A step may call the step of its base class, which runs the global hooks.
        if any(getattr(step, "hooked", False) for step in steps[1:]):
            torch_optimizer._global_optimizer_pre_hooks = OrderedDict()
            torch_optimizer._global_optimizer_post_hooks = OrderedDict()
        fork = torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
        with fork, device, torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed other devices
            if devices:
                torch.get_device_module(device).manual_seed(0)
            yield
    finally:
        random.setstate(state)
        torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks = pre, post
