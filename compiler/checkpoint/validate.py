"""Check that a checkpoint belongs to this model, config and optimizer, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from topkast.compiler.config import Config
from topkast.compiler.options import options
from topkast.runtime.errors import CheckpointError, ConfigError
from topkast.runtime.layout import Index, check_index
from topkast.runtime.methods import METHODS
from topkast.runtime.state.content.shards.shard import is_sharded, local
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.model import owned
from topkast.runtime.state.persist.saved_form import columns_of
from topkast.runtime.state.persist.state_dict import keys

SHOWN = 8  # a wrong model differs everywhere, so the first few lines are enough


def refuse(path: Path, what: str, wrong: list[str]) -> None:
    """Raise CheckpointError if the list of differences is not empty."""
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(f"{path}: {what}, nothing was loaded: {'; '.join(wrong[:SHOWN])}{more}")


def check_supported(path: Path, theirs: dict[str, Any], version: str) -> None:
    """Raise CheckpointError for a value of an option that this version refuses.

    Args:
        path: the path of the file.
        theirs: the file's config.
        version: the version of topkast that wrote the file.
    """
    if (method := theirs.get("method", Config.method)) not in METHODS:
        raise CheckpointError(
            f"{path}: saved with method={method!r}, which this program does not know; topkast.register_method adds the "
            "method's class; nothing was loaded"
        )
    for one in options(Config):
        try:
            one.check(one.name, theirs.get(one.name, one.default))
        except ConfigError as error:
            raise CheckpointError(
                f"{path}: {error}; this value is no longer supported, and topkast {version} wrote it into the file; "
                "nothing was loaded"
            ) from error


def check_config(path: Path, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise CheckpointError if options differ, and list them; an option with ``free_at_load`` may differ."""
    fields = sorted((set(mine) | set(theirs)) - {one.name for one in options(Config) if one.free_at_load})
    wrong = [
        f"{field}: file {theirs.get(field)!r}, model {mine.get(field)!r}"
        for field in fields
        if mine.get(field) != theirs.get(field)
    ]
    refuse(path, "saved with another config", wrong)


def check_sites(path: Path, mine: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> None:
    """Raise CheckpointError if sites differ or exist only on one side, and list them."""
    wrong = [f"{name}: sparse in the file, not in the model" for name in theirs if name not in mine]
    wrong += [f"{name}: sparse in the model, not in the file" for name in mine if name not in theirs]
    for name in mine:
        for field in ("shape", "perm", "lead", "block", "n_fwd", "n_bwd"):
            if name in theirs and mine[name][field] != theirs[name].get(field):
                wrong.append(f"{name}: {field} {theirs[name].get(field)} in the file, {mine[name][field]} in the model")
    refuse(path, "a checkpoint of another model", wrong)


def differences(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """The keys that only one of two state dicts has, and the tensors with another shape or dtype.

    Args:
        own: the state dict of the model.
        state: the state dict of the file.
    """
    wrong = [f"missing: {key}" for key in own if key not in state]
    wrong += [f"unexpected: {key}" for key in state if key not in own]
    for key in own:
        if key in state and isinstance(own[key], Tensor):
            wanted, given = own[key], state[key]
            if not isinstance(given, Tensor) or given.shape != wanted.shape or given.dtype != wanted.dtype:
                wrong.append(f"{key}: {kind_of(given)} in the file, {kind_of(wanted)} in the model")
    return wrong


def check_tensors(path: Path, root: nn.Module, state: dict[str, Any]) -> None:
    """Raise CheckpointError if a name, a shape, a dtype or an index does not fit the model."""
    wrong: list[str] = []
    refuse(path, "tensors do not fit the model", differences(root.state_dict(), state))
    for name, (site, owners) in owned(root).items():
        for module, attribute in owners:
            _, prefix = keys(joined(module, ""), attribute)
            step, refreshed_at = (int(n) for n in state[prefix + "clock"])
            if not -1 <= refreshed_at <= step:
                wrong.append(f"{name}: the clock says step {step}, refreshed at step {refreshed_at}")
            kinds = ("", "prepared_") if site.rule.refresh_in_background else ("",)
            for kind in kinds:
                row_ptr, row_fwd, cols = (state[prefix + kind + field] for field in Index._fields)
                index = Index(row_ptr, row_fwd, columns_of(local(cols), site.geometry.grid[1]))
                part = index if site.shard is None or not is_sharded(cols) else site.shard.own_index(*index)
                broken = check_index(part, site.geometry)
                in_a, in_b = int((index.row_fwd - index.row_ptr[:-1]).sum()), int(index.row_ptr[-1])
                nothing = bool(kind) and in_a == in_b == 0
                if broken is None and not nothing and not site.method.holds(site.set_state(), in_a, in_b):
                    broken = f"it holds {in_a} units in A and {in_b} in B"
                if broken:
                    wrong.append(f"{name}: {broken}")
    refuse(path, "an index is broken", wrong)


def kind_of(value: Any) -> str:
    """Dtype and shape of a tensor, or the type of another value, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def check_optimizer(path: Path, mine: dict[str, Any], theirs: dict[str, Any] | None) -> dict[str, Any]:
    """Return ``theirs``; CheckpointError if class, or number, order, names or shapes of the parameters differ."""
    if theirs is None:
        raise CheckpointError(f"{path}: holds no optimizer, but one was given; save(model, path, optimizer) writes one")
    wrong = []
    if mine["class"] != theirs["class"]:
        wrong.append(f"{theirs['class']} in the file, {mine['class']} given")
    counts = [[len(group) for group in side["params"]] for side in (theirs, mine)]
    if counts[0] != counts[1]:
        wrong.append(f"parameters per group: {counts[0]} in the file, {counts[1]} given")
    elif not wrong:
        for group, (old, new) in enumerate(zip(theirs["params"], mine["params"], strict=True)):
            for number, (there, here) in enumerate(zip(old, new, strict=True)):
                if there != here:
                    where = f"group {group}, parameter {number}"
                    wrong.append(f"{where}: {there[0]} {there[1]} in the file, {here[0]} {here[1]} given")
    refuse(path, "another optimizer", wrong)
    return theirs
