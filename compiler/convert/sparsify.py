"""Turn a model's weights into sites, in place: all of them, or none if there is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

from topkast.compiler.capture.before_forward import refresh_before_forward
from topkast.compiler.config import OPTIONS, Config
from topkast.compiler.convert import wrong_model as mixed_up  # noqa: F401  (errors of nn.Module.load_state_dict)
from topkast.compiler.convert.meta.from_file import FromFile
from topkast.compiler.convert.meta.materialise import materialise
from topkast.compiler.convert.meta.rehearse import Plan, rehearse
from topkast.compiler.convert.meta.tensors import held
from topkast.compiler.convert.wrong_model import refuse_dense
from topkast.compiler.describe import with_options
from topkast.compiler.options import pick
from topkast.compiler.start import Start
from topkast.runtime.doing import doing
from topkast.runtime.errors import ConfigError, ModelError
from topkast.runtime.layout import Geometry
from topkast.runtime.memory_pages import trim_heap
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.parts import carry_out
from topkast.runtime.state.content.reservoirs import RESERVOIRS, values_outside
from topkast.runtime.state.model import Record, sites
from topkast.runtime.state.sharding.compare import make_alike, numbers
from topkast.runtime.state.site_module import SiteModule

from .attach import attach
from .check import check_model
from .distribute import Count, Counts, distribute
from .initial import start_scale, start_scales
from .outside import CONVERTED
from .select import Selection, select
from .undo import Undo

M = TypeVar("M", bound=nn.Module)


def _geometries(model: nn.Module, config: Config, selection: Selection) -> dict[str, Geometry]:
    """Geometry of every selected weight; a weight that the block does not fit moves to ``selection.dense``."""
    parameters = dict(model.named_parameters())
    found, too_small = {}, []
    for name, use in list(selection.sparse.items()):
        geometry = Geometry(tuple(parameters[name].shape), use.perm, use.lead, config.block)
        if geometry.rows < config.block[0] or geometry.cols < config.block[1]:
            selection.dense[name] = (
                f"its matrix [{geometry.rows}, {geometry.cols}] is smaller than the block {config.block}"
            )
            too_small.append(name)
            del selection.sparse[name]
        else:
            found[name] = geometry
    if not found and too_small:
        raise ConfigError(
            f"block={config.block}: larger than every weight that could be sparse: {', '.join(too_small)}"
        )
    return found


def cut(model: nn.Module, config: Config, selection: Selection) -> tuple[dict[str, Geometry], Counts]:
    """How each selected weight is cut into blocks, and how many of them are kept, by name.

    Raises:
        ModelError: nothing can be sparse.
        ConfigError: a block, or a glob of ``distribution``, fits no weight.
    """
    geometries = _geometries(model, config, selection)
    if not geometries:
        reasons = "; ".join(f"{name}: {why}" for name, why in selection.dense.items()) or "it has no parameters"
        raise ModelError(f"model: no weight can be sparse ({reasons})")
    _check_distribution(config, list(geometries))
    return geometries, distribute(config, geometries)


def _check_distribution(config: Config, names: list[str]) -> None:
    if isinstance(config.distribution, dict):
        for glob in config.distribution:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ConfigError(
                    f"distribution: the glob {glob!r} matches none of the sparse weights: {', '.join(names)}"
                )


def _without_input(config: Config, geometries: dict[str, Geometry], counts: Counts) -> list[str]:
    """The message about weights that were not balanced because their rows have less than a block each."""
    said = []
    for name, count in counts.items():
        rows, columns = geometries[name].grid
        if config.balanced is None and count.fwd < rows:
            said.append(
                f"{name}: A has {count.fwd} blocks for {rows} rows of blocks, so some outputs have no input; smaller "
                f"blocks or a smaller fwd give each one, and so does balanced=True, at a density of {1 / columns:.2g}"
            )
    return said


def _bytes_outside(parameter: nn.Parameter, geometry: Geometry, count: Count, config: Config) -> int:
    fwd, bwd, balanced = count
    return values_outside(geometry, fwd, bwd, config.rule(balanced)) * parameter.element_size()


def _plan(model: nn.Module, start: Start) -> tuple[Plan | None, torch.device]:
    """The plan by which tensors on the meta device get values, and their device; no plan if no tensor is on meta."""
    init, device = start.init, start.device
    if not held(model):
        for name, value in (("init", init), ("device", device)):
            if value is not None:
                raise ConfigError(f"{name}: only for a model on the meta device, and nothing of this one is on it")
        return None, torch.device("cpu")
    if isinstance(init, (str, os.PathLike)):
        init = FromFile(model, init)
    if init is not None and not callable(init):
        raise ConfigError(f"init={init!r}: must be a function of a module, the path of a checkpoint, or None")
    try:
        place = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r}: {error}") from error
    if "meta" in (place.type, torch.get_default_device().type):
        raise ConfigError(f"device={device!r}: holds no values; call this outside torch.device('meta') too")
    return rehearse(model, init), place


@doing("converting")
def convert(
    model: M,
    config: Config,
    start: Start,
    last: Callable[[nn.Module], None] | None = None,
) -> M:
    """Convert ``model`` in place; if the conversion fails or is interrupted, the model is unchanged.

    Args:
        model: any module that :func:`topkast.compiler.convert.check.check_model` does not refuse.
        config: the options that stay with the model.
        start: the options that only the conversion needs.
        last: called with the converted model; if it fails, the whole conversion is undone.

    Raises:
        ModelError: the model cannot be converted, or nothing in it can be sparse.
        ConfigError: a glob or a block fits nothing, or an argument does not fit the model.
        CheckpointError: ``init`` is the path of a checkpoint that is damaged or of another model.
        ReservoirError: ``reservoir="disk"``, and the disk has no room.
    """
    check_model(model)
    plan, place = _plan(model, start)
    selection = select(model, config, start.example_inputs)
    geometries, counts = cut(model, config, selection)
    parameters = dict(model.named_parameters())
    record = Record(
        config=config,
        dense=selection.dense,
        ops={name: selection.sparse[name].ops for name in geometries},
        positions={name: selection.sparse[name].positions for name in geometries},
        how=selection.how,
        family=Family(model),
    )
    if start.example_inputs is not None and selection.how.startswith("structure"):
        record.warnings.append(f"example_inputs were of no use: the weights were chosen by {selection.how}")
    record.warnings += _without_input(config, geometries, counts)
    outside = [_bytes_outside(parameters[name], geometries[name], counts[name], config) for name in geometries]
    RESERVOIRS[config.reservoir].check_room(sum(outside))

    undo = Undo(model)
    # Of the sites that keep only a part: what a later line has to know about their whole weight.
    known_scales, known_numbers = dict[str, float | None](), dict[str, list[int]]()

    def build(name: str) -> None:
        if name in geometries:
            fwd, bwd, balanced = counts[name]
            rule = config.rule(balanced)
            parameter = model.get_parameter(name)
            site = SiteModule(parameter, name, geometries[name], fwd, bwd, rule, record.family)
            if start.mesh is not None:
                site.share_index()
            undo.note(parameter, site)
            owners = selection.sparse[name].owners
            site.adopt(model.get_submodule(owners[0][0]), owners[0][1])
            for path, attribute in owners:
                attach(model.get_submodule(path), attribute, site)
            if start.mesh is not None and plan is not None and name in plan.owners:
                known_scales[name], known_numbers[name] = start_scale(site, config.initial), numbers(site)
                site.keep_part(start.mesh)
            site.place.rest(site.reservoir)
            del parameter
            trim_heap()  # so that the next weight finds the memory of this one

    def end() -> None:
        undo.closed = True
        for name, scale in record.scaled.items():
            found[name].scale(scale)

    # Every argument has been checked, but initialisers are the user's code, and Ctrl-C can come at any time.
    try:
        if plan is not None:
            record.warnings += plan.warnings
            materialise(plan, place, build)
        for name in geometries:
            if plan is None or name not in plan.owners:
                build(name)
        model._topkast = record  # type: ignore[assignment]
        found = sites(model)
        if start.mesh is not None:
            make_alike(found.values(), start.mesh, known_numbers)
        record.scaled = start_scales(found, config.initial, known_scales)
        model.register_forward_pre_hook(refresh_before_forward, prepend=True)
        model.register_load_state_dict_pre_hook(refuse_dense)
        if last is not None:
            last(model)
        for call in CONVERTED:
            call()
        carry_out((), end)  # an interrupt never leaves a site partly scaled
    except BaseException:
        if not undo.closed:
            carry_out((), undo.back)
        raise
    return model


@with_options(OPTIONS)
def sparsify(model: M, fwd: float = Config.fwd, bwd: float | None = Config.bwd, **options: Any) -> M:
    """Convert a model in place without compiling it.

    The model works in eager mode and is ready for ``torch.compile(model, backend="topkast")``.

    Args:
        model: as for :func:`topkast.compile`.
        {options}

    Returns:
        The same object.

    Raises:
        ConfigError, ModelError, ReservoirError: as :func:`topkast.compile`. The model is unchanged.
    """
    allowed = [one.name for one in OPTIONS if one.name not in ("fwd", "bwd")]
    if unknown := sorted(set(options) - set(allowed)):
        raise ConfigError(f"unknown arguments {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return convert(model, Config(fwd, bwd, **pick(Config, options)), Start(**pick(Start, options)))
