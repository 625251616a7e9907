"""Find out how a model on the meta device gets its values, module by module, without memory for the values.

An initialiser of a module can also write into the module's children (GPT-2's blocks scale their output projections).
Therefore a weight must stay dense until the last initialiser that touches the weight is done. The initialisers first
run on the meta tensors: this shows which tensors each initialiser touches, and which tensors no initialiser fills.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from topkast.runtime.errors import ModelError

from .access import Watch
from .from_file import RESETS, FromFile
from .tensors import Owners, current, held, on_meta_only, refuse_loose

Init = Callable[[nn.Module], Any]
REMEDY = "give init=, a function that fills the tensors of the module it is called with"


@dataclass
class Step:
    """The initialisation of one module: functions to call, tensors to make before, tensors that are final after."""

    path: str
    module: nn.Module
    calls: list[Init] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    final: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """The tensors on the meta device by name, the steps in their order, and notes for the user."""

    owners: Owners
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def rehearse(model: nn.Module, init: Init | None) -> Plan:
    """Plan the initialisation of all tensors on the meta device.

    Args:
        model: unchanged afterwards.
        init: the function that initialises a module, see :func:`topkast.compile`.

    Raises:
        ModelError: names the tensors that nothing initialises, that would be overwritten, or that cannot be made.
    """
    if isinstance(init, FromFile):
        init.use_rules({id(module): rule for _, module, rule in _in_order(model)})
    plan, real, watch = Plan(held(model)), held(model, meta=False), Watch()
    every, filled = plan.owners | real, set()
    turns: dict[str, list[Step]] = defaultdict(list)
    refuse_loose(model)
    with on_meta_only(model):
        for name in every:
            watch.follow(name, current(name, every))
        if watch.shared():
            raise ModelError(f"{', '.join(watch.shared())}: on the meta device, over the memory of another tensor")
        for path, module, rule in _in_order(model):
            step, own = Step(path, module), _below(plan.owners, [module])
            below = _below(plan.owners, list(module.modules()))
            watch.touched, watch.written = set(), set()
            sure = _try(step, own, init, rule, watch)
            if below and not step.calls and _reset(module):
                plan.warnings.append(f"{path or 'model'}: holds no tensor itself, so its reset_parameters did not run")
            for name in below:
                watch.follow(name, current(name, plan.owners))
            touched = [name for name in plan.owners if name in watch.touched or name in own]
            if not touched and (sure or not below):
                continue
            if lost := [name for name in real if name in watch.written and _is_parameter(*real[name][0])]:
                raise ModelError(f"{', '.join(lost)}: not on the meta device; initialising {path} would overwrite it")
            filled |= watch.written if sure else {*watch.written, *own}
            plan.steps.append(step)
            for name in touched:
                turns[name].append(step)
    if empty := [name for name in plan.owners if name not in filled and current(name, plan.owners).numel()]:
        names = ", ".join(f"{name} ({type(plan.owners[name][0][0]).__name__})" for name in empty)
        raise ModelError(f"nothing initialises {names}: no reset_parameters or _init_weights writes to it; {REMEDY}")
    for name in plan.owners:
        turns[name][0].made.append(name)
        turns[name][-1].final.append(name)
    for step in plan.steps:
        if len(step.final) > max(8, len(plan.owners) // 2):
            what = f"initialising it touches {len(step.final)} tensors, which all had to be dense at once"
            plan.warnings.append(f"{step.path or 'model'}: {what}")
    return plan


def _try(step: Step, own: list[str], init: Init | None, rule: Init | None, watch: Watch) -> bool:
    """Choose the functions that initialise a module, and try them; True if all of them ran to the end."""

    def runs(call: Init) -> bool:
        try:
            with watch:
                call(step.module)
        except Exception:  # code that reads values cannot run on meta tensors; the real run checks the code
            return False
        return True

    step.calls = [call for call in (init or rule,) if call is not None]
    sure = [runs(call) for call in step.calls]
    if init is None and not watch.written.issuperset(own):
        # A tensor that the rule does not write has its values from the constructor, which ran before the rule.
        resets = _reset(step.module)
        sure += [runs(call) for call in resets]
        step.calls = resets + step.calls
    return all(sure)


def _reset(module: nn.Module) -> list[Init]:
    found: list[Init] = [operator.methodcaller(name) for name in RESETS if callable(getattr(module, name, None))]
    return found[:1]


def _is_parameter(module: nn.Module, attribute: str) -> bool:
    return attribute in module._parameters


def _below(owners: Owners, modules: list[nn.Module]) -> list[str]:
    inside = {id(module) for module in modules}
    return [name for name, who in owners.items() if any(id(module) in inside for module, _ in who)]


def _in_order(module: nn.Module, path: str = "", rule: Init | None = None) -> Iterator[tuple[str, nn.Module, Any]]:
    """(path, module, nearest ``_init_weights`` at or above it), in the order of ``nn.Module.apply``: children first."""
    own = getattr(module, "_init_weights", None)
    if callable(own):
        with contextlib.suppress(TypeError, ValueError):  # some modules have an _init_weights that takes no module
            inspect.signature(own).bind(module)
            rule = own
    for name, child in module.named_children():
        yield from _in_order(child, f"{path}.{name}".lstrip("."), rule)
    yield path, module, rule
