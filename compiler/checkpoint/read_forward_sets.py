"""Read from a checkpoint what inference needs and nothing else, and check that it belongs to a plain model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from topkast.compiler.config import Config
from topkast.compiler.convert.check import check_model
from topkast.compiler.convert.use_forward_sets import ForwardSet, owners_of, use_forward_sets
from topkast.runtime.errors import CheckpointError, ConfigError
from topkast.runtime.layout import Geometry, Index, check_index, forward_part
from topkast.runtime.methods import METHODS
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.persist.saved_form import columns_of
from topkast.runtime.state.persist.state_dict import keys

from .pack import named, read, unpack
from .validate import differences, kind_of, refuse


def load_for_inference(
    model: nn.Module, path: Path, config: dict[str, Any], sites: dict[str, Any], extra: dict[str, Any]
) -> None:
    """Make a plain model sparse with the forward sets of a file: see :func:`topkast.load`.

    Args:
        model: the plain model.
        path: the path of the file.
        config, sites, extra: the parts of the file's header with these names.

    Raises:
        CheckpointError: the file does not fit the model, or an index is broken.
        ModelError: the model is converted already, or nothing gives a tensor on the meta device its values.
    """
    check_model(model)
    owners, own = owners_of(model), model.state_dict()
    refuse(path, "a checkpoint of another model", [f"{name}: not in the model" for name in sites if name not in owners])
    places = {name: [keys(joined(module, ""), attribute) for module, attribute in owners[name]] for name in sites}
    values = {key for found in places.values() for key, _ in found}
    prefixes = ("optimizer/", *(prefix for found in places.values() for _, prefix in found))
    _, tensors = read(path, lambda name: name not in values and not name.startswith(prefixes))
    rest: dict[str, Any] = {key: tensor for key, tensor in tensors.items() if not key.startswith("extra/")}
    refuse(path, "tensors are missing", [name for name in named(list(extra.values())) if name not in tensors])
    rest |= {key: unpack(value, tensors) for key, value in extra.items()}
    wanted = {key: value for key, value in own.items() if key not in values}
    refuse(path, "tensors do not fit the model", differences(wanted, rest))
    weights = {
        name: _forward_set(path, name, sites[name], places[name][0], model.get_parameter(name)) for name in sites
    }
    try:
        options = config_of(config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: the file's options do not fit together: {error}") from error
    use_forward_sets(model, options, weights, rest, path.name)


def config_of(given: dict[str, Any]) -> Config:
    """The options that the model was trained with. A checkpoint also holds the values of options that the method does
    not use, and these cannot be given."""
    method = METHODS[given.get("method", Config.method)]
    of_others = {name for other in METHODS.values() for name in other.uses} - set(method.uses)
    known = {field.name for field in dataclasses.fields(Config)} - of_others
    return Config(**{name: value for name, value in given.items() if name in known})


def _forward_set(
    path: Path, name: str, entry: dict[str, Any], place: tuple[str, str], parameter: nn.Parameter
) -> ForwardSet:
    """Read one weight. Only the values of A stay in memory."""
    key, prefix = place
    names = {field: prefix + field for field in Index._fields}
    _, tensors = read(path, lambda found: found == key or found in names.values())
    geometry = geometry_of(entry, parameter)
    if geometry is None:
        refuse(
            path, "a checkpoint of another model", [f"{name}: {entry} in the file, {kind_of(parameter)} in the model"]
        )
    assert geometry is not None
    refuse(path, "tensors do not fit the model", [f"missing: {n}" for n in (key, *names.values()) if n not in tensors])
    row_ptr, row_fwd, cols = (tensors[names[field]] for field in Index._fields)
    index, values = Index(row_ptr, row_fwd, columns_of(cols, geometry.grid[1])), tensors[key]
    broken = _misshapen(index, values, geometry) or check_index(index, geometry)
    if broken is None and values.dtype != parameter.dtype:
        broken = f"{kind_of(values)} in the file, {kind_of(parameter)} in the model"
    refuse(path, "a weight does not fit the model", [f"{name}: {broken}"] if broken else [])
    return ForwardSet(*forward_part(values, index, geometry), geometry, int(entry["seed"]))


def geometry_of(entry: dict[str, Any], parameter: nn.Parameter) -> Geometry | None:
    """How the file cuts the weight into units; None if this is no way to cut the parameter."""
    try:
        shape, perm = tuple(entry["shape"]), tuple(entry["perm"])
        (rows, columns), lead = entry["block"], entry["lead"]
        fits = shape == tuple(parameter.shape) and sorted(perm) == list(range(len(shape))) and 0 < lead < len(shape)
        return Geometry(shape, perm, lead, (rows, columns)) if fits and rows > 0 and columns > 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def _misshapen(index: Index, values: Tensor, geometry: Geometry) -> str | None:
    rows = geometry.grid[0]
    shapes = [tuple(tensor.shape) for tensor in index]
    if shapes[:2] != [(rows + 1,), (rows,)] or len(shapes[2]) != 1 or values.numel() != shapes[2][0] * geometry.unit:
        return f"values of shape {tuple(values.shape)} and an index of the shapes {shapes}"
    return None
