"""Checkpoints: one safetensors file with a readable header. Training continues from the file bit for bit.

The header is JSON in the file's metadata: format and version, config, sites, step, and the optimizer's options. Tensors
of the model have their state-dict names; tensors of the optimizer are called ``optimizer/<number>/<name>``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topkast.compiler.config import Config
from topkast.runtime.errors import CheckpointError, ConfigError
from topkast.runtime.new_file import path_of
from topkast.runtime.planner.cache import use
from topkast.runtime.planner.plan import times_of
from topkast.runtime.state.content.parts import carry_out
from topkast.runtime.state.content.shards.shard import Shard
from topkast.runtime.state.model import Record, find, sites
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.snapshots import restore_snapshots

from .format1 import in_order, upgrade, upgrade_optimizer
from .optimizer_part import describe_optimizer, load_optimizer, pack_optimizer, parameter_of, trained_parameters
from .pack import named, names, pack, read, unpack, write
from .read_forward_sets import load_for_inference
from .schema import check_format, parsed
from .together import agreed, write_together
from .validate import check_config, check_optimizer, check_sites, check_supported, check_tensors, refuse
from .validate_optimizer import check_content, check_given

FORMAT = "topkast"
SHOWN = ("fwd", "bwd")  # options that a summary shows even if they are the default
VERSION = 2  # since version 2 a weight keeps its name; see topkast.runtime.state.saved


def save(model: Any, path: str | os.PathLike[str], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write the model, and the optimizer if one is given, to ``path``.

    If ``fully_shard`` has sharded the model, all ranks call this function together, and the first rank writes. It
    receives the parts of one tensor after the other. The file is the same as the file of one process.

    The file is written completely or not at all. The file does not hold the learning-rate scheduler, the GradScaler,
    the random state or the position in the data; the training loop must save these.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.
        path: the path of the file; its folder must exist.
        optimizer: any ``torch.optim.Optimizer`` over the model's parameters. None: no optimizer is saved.

    Raises:
        CheckpointError: the optimizer or a module's extra state holds a value that is neither a tensor nor plain data;
            or the file cannot be written: only a regular file is replaced. An older file is unchanged.
        ConfigError: ``path`` is no path, or ``optimizer`` is no optimizer or trains no parameter of the model.
        ModelError: the model was not converted, or was loaded with ``inference=True``.
    """
    path = path_of("path", path)
    root, record = find(model)
    found = sites(model)
    if optimizer is not None:
        check_given(root, optimizer)
    for site in found.values():
        site.check_trainable("a checkpoint")
    restore_snapshots(found.values())
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    for key, value in root.state_dict().items():
        if isinstance(value, Tensor):
            tensors[key] = value
        else:
            extra[key] = pack(value, f"extra/{key}", tensors)
    header = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "topkast_version": own_version(),
        "torch_version": str(torch.__version__),
        "step": str(max(site.step for site in found.values())),
        "config": json.dumps(config_entries(record)),
        "sites": json.dumps({name: describe(site) for name, site in found.items()}),
        "extra": json.dumps(extra),
        "times": json.dumps(times_of(found.values())),
    }
    if optimizer is not None:
        header["optimizer"] = json.dumps(pack_optimizer(root, optimizer, tensors))
    shard = _shard(found)
    if shard is None:
        write(path, tensors, header)
    else:
        write_together(path, tensors, header, shard)


def load(
    model: Any,
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    inference: bool = False,
) -> None:
    """Load a file that :func:`save` wrote. Training then continues with the next step, bit for bit.

    A sharded model reads the file of one process or of any number of ranks, and the other way round. All ranks call
    this function together; each needs the file under this path and reads its own part.

    Everything is checked before anything is changed. Model and optimizer are changed completely: an interrupt during
    the change takes effect after the change.

    Args:
        model: the same architecture, converted by topkast with the same options. Only ``reservoir`` and ``initial`` may
            differ: they decide where values are stored and how they started, not the values themselves. With
            ``inference=True``: the plain architecture, not converted; it may be on the meta device.
        path: the path of the file.
        optimizer: an optimizer of the same class over the same parameters. None: the optimizer's part of the file is
            not read.
        inference: whether to load only what the forward needs: of each sparse weight the set A, without the values of
            B \\ A, the reservoir and the optimizer. The file says which weights are sparse, so no options are needed.
            The model is converted in place and put into evaluation mode. Its forward equals that of the trained model,
            bit for bit. A gradient of a sparse weight, a refresh and :func:`save` raise ModelError. A model on the meta
            device comes to the CPU, and its dense weights never exist.

    Raises:
        CheckpointError: the file is damaged or has another format or a newer version; the file has an option's value
            that is no longer supported; or the file belongs to another model, config or optimizer. The message says
            what was found and what was expected.
        ConfigError: ``inference=True`` and an optimizer are given together; ``path`` is no path; or ``optimizer`` is no
            optimizer or trains no parameter of the model.
        ModelError: the model was not converted, or was loaded with ``inference=True`` before; or, with
            ``inference=True``, the model is converted already.
    """
    path = path_of("path", path)
    if inference:
        _load_for_inference(model, path, optimizer)
        return
    root, record = find(model)
    if optimizer is not None:
        check_given(root, optimizer)
    found = sites(model)
    for site in found.values():
        site.check_trainable("a checkpoint to train on")
    apply = agreed(_shard(found), lambda: _checked(root, record, found, path, optimizer))
    carry_out(found.values(), apply)


def _checked(
    root: nn.Module,
    record: Record,
    found: dict[str, SiteModule],
    path: Path,
    optimizer: torch.optim.Optimizer | None,
) -> Callable[[], None]:
    """Read and check a file. Returns the function that changes the model and the optimizer."""
    own = root.state_dict()
    trained = [] if optimizer is None else trained_parameters(root, optimizer)
    every = [one for group in trained for one in group]
    header, tensors = read(path, like=lambda name: own.get(name, parameter_of(name, every)))
    _check_format(path, header)
    config, theirs, extra = (parsed(path, header, key) for key in ("config", "sites", "extra"))
    packed = parsed(path, header, "optimizer") if "optimizer" in header else None
    check_supported(path, config, header.get("topkast_version", "?"))
    # If the file does not name an option, the option did not exist at the time: the default has the same meaning.
    check_config(path, config_entries(record), {**asdict(Config()), **config})
    check_sites(path, {name: describe(site) for name, site in found.items()}, theirs)
    # The optimizer's tensors and the tensors inside extra state are not part of the model's state dict.
    prefixes = ("optimizer/", "extra/")
    state: dict[str, Any] = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefixes)}
    refuse(path, "tensors are missing", [name for name in named(list(extra.values())) if name not in tensors])
    state.update({key: unpack(value, tensors) for key, value in extra.items()})
    is_old = header["format_version"] == "1"
    upgrade(root, state)
    check_tensors(path, root, state)
    order: list[list[int]] | None = None
    if optimizer is not None:
        mine = describe_optimizer(root, optimizer)
        if is_old and packed is not None:
            packed, order = upgrade_optimizer(root, packed, mine)
        packed = check_optimizer(path, mine, packed)
        wanted = named(packed["state"])
        if any(name not in tensors for name in wanted):
            raise CheckpointError(f"{path}: missing tensors: {', '.join(n for n in wanted if n not in tensors)}")
    times = parsed(path, header, "times") if "times" in header else None
    content = None if optimizer is None or packed is None else unpack(packed["state"], tensors)
    if content is not None and order is not None and optimizer is not None:
        content = in_order(content, order, trained)
    if content is not None and optimizer is not None:
        check_content(path, root, optimizer, content, trained)

    def apply() -> None:
        root.load_state_dict(state)
        for name, site in found.items():
            site.set_seed(theirs[name]["seed"])
            site.set_churn([(int(step), float(fwd), float(bwd)) for step, fwd, bwd in theirs[name]["churn"]])
        if times is not None:
            use(times)
        if optimizer is not None and content is not None:
            load_optimizer(root, optimizer, content)

    return apply


def _shard(found: dict[str, SiteModule]) -> Shard | None:
    """The part of any sharded site; None if no site is sharded."""
    return next((site.shard for site in found.values() if site.shard is not None), None)


def _load_for_inference(model: Any, path: Path, optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is not None:
        raise ConfigError("optimizer: a model that is loaded with inference=True cannot be trained, so it takes none")
    header, _ = read(path, lambda name: False)
    _check_format(path, header)
    if header["format_version"] == "1":
        raise CheckpointError(
            f"{path}: format version 1, from which inference=True cannot load; topkast.load it into a converted model "
            "once, and topkast.save writes today's format"
        )
    config, sites, extra = (parsed(path, header, key) for key in ("config", "sites", "extra"))
    check_supported(path, config, header.get("topkast_version", "?"))
    load_for_inference(model, path, config, sites, extra)


def own_version() -> str:
    try:
        return version("topkast")
    except PackageNotFoundError:
        return "not installed"


def config_entries(record: Record) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(record.config)))


def describe(site: SiteModule) -> dict[str, Any]:
    """The header's entry for a site."""
    geometry = site.geometry
    return {
        "shape": list(geometry.shape),
        "perm": list(geometry.perm),
        "lead": geometry.lead,
        "block": list(geometry.block),
        "n_fwd": site.n_fwd,
        "n_bwd": site.n_bwd,
        # Without a seed in the config, torch's own seed of that process was used, so the file must hold that seed.
        "seed": site.rule.seed,
        "churn": site.churn[-20:],
    }


def read_summary(path: Path) -> dict[str, Any]:
    """What the header of a file says, without reading a tensor.

    Returns:
        ``step``, ``topkast_version``, ``torch_version``, ``options`` (sparsities, and those that are not the default),
        ``sites`` (name -> entry of :func:`describe`), ``optimizer`` (its class; None if the file holds none),
        ``tensors`` (their number) and ``file_bytes``.

    Raises:
        CheckpointError: the file is damaged, has another format or a newer version.
    """
    header, _ = read(path, lambda name: False)
    _check_format(path, header)
    config, theirs = parsed(path, header, "config"), parsed(path, header, "sites")
    optimizer = parsed(path, header, "optimizer") if "optimizer" in header else {"class": None}
    default = json.loads(json.dumps(asdict(Config())))
    return {
        "step": header.get("step", "?"),
        "topkast_version": header.get("topkast_version", "?"),
        "torch_version": header.get("torch_version", "?"),
        "options": {name: value for name, value in config.items() if name in SHOWN or value != default.get(name)},
        "sites": theirs,
        "optimizer": optimizer.get("class"),
        "tensors": len(names(path)),
        "file_bytes": path.stat().st_size,
    }


def _check_format(path: Path, header: dict[str, str]) -> None:
    check_format(path, header, FORMAT, VERSION, "not written by topkast.save", own_version())
