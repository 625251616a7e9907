"""Make a dense model sparse with the sets and the θ of a file. The model must hold W_A already."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from topkast.compiler.capture.before_forward import refresh_before_forward
from topkast.compiler.checkpoint.read_forward_sets import config_of, geometry_of
from topkast.compiler.checkpoint.validate import kind_of, refuse
from topkast.compiler.convert.attach import attach
from topkast.compiler.convert.check import check_model
from topkast.compiler.convert.outside import CONVERTED
from topkast.compiler.convert.use_forward_sets import Owners, owners_of
from topkast.compiler.convert.wrong_model import refuse_dense
from topkast.runtime.errors import CheckpointError
from topkast.runtime.reference.products import weight
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.model import Record
from topkast.runtime.state.site_module import SiteModule

from .sets_file import SetsFile

OTHER = "the sets do not belong to the model beside them"


@torch.no_grad()
def use_sets(model: nn.Module, found: SetsFile) -> None:
    """Convert a model in place. After an error the model is converted in part, so it must be dropped.

    Args:
        model: the dense model that was loaded from the same folder.
        found: the file.

    Raises:
        CheckpointError: a weight of the file is not in the model, or W_A of the file and of the model differ.
    """
    check_model(model)
    owners = owners_of(model)
    refuse(found.path, OTHER, [f"{name}: not in the model" for name in found.sites if name not in owners])
    record = Record(
        config=config_of(found.config),
        dense=found.dense,
        ops={entry["name"]: entry["ops"] for entry in found.sites.values()},
        positions={entry["name"]: entry["positions"] for entry in found.sites.values()},
        how=found.how,
        family=Family(model),
        scaled={entry["name"]: entry["scaled"] for entry in found.sites.values() if entry["scaled"] != 1.0},
    )
    for name, entry in found.sites.items():
        _replace(model, owners[name], name, entry, record, found)
    model._topkast = record  # type: ignore[assignment]
    model.register_forward_pre_hook(refresh_before_forward, prepend=True)
    model.register_load_state_dict_pre_hook(refuse_dense)
    for call in CONVERTED:
        call()


def _replace(
    model: nn.Module, owners: Owners, name: str, entry: dict[str, Any], record: Record, found: SetsFile
) -> None:
    """Let every owner of the parameter read a site with the sets and the values of the file."""
    parameter = model.get_parameter(name)
    dense, geometry = parameter.detach(), geometry_of(entry, parameter)
    if geometry is None:
        shape = f"{entry['shape']} in {found.path.name}, {kind_of(parameter)} in the model"
        raise CheckpointError(f"{found.path}: {OTHER}: {name}: {shape}")
    rule = record.config.rule(entry["balanced"]).replaced(seed=entry["seed"])
    site = SiteModule(parameter, entry["name"], geometry, entry["n_fwd"], entry["n_bwd"], rule, record.family)
    site.adopt(model.get_submodule(owners[0][0]), owners[0][1])
    for path, attribute in owners:
        attach(model.get_submodule(path), attribute, site)
    missing: list[str] = []
    errors: list[str] = []
    site.load(found.tensors_of(name), (entry["values"], entry["rest"]), missing, errors)
    errors += [f"missing: {key}" for key in missing]
    refuse(found.path, "tensors do not fit the model", errors)
    in_a, in_b = int((site.row_fwd - site.row_ptr[:-1]).sum()), int(site.row_ptr[-1])
    if not site.method.holds(site.set_state(), in_a, in_b):
        raise CheckpointError(f"{found.path}: {name}: the index holds {in_a} units in A and {in_b} in B")
    if not torch.equal(weight(site.values, site.index, geometry), dense):
        raise CheckpointError(
            f"{found.path}: {OTHER}: {name} is another weight there; the dense model was changed or replaced after the "
            f"sets were written, or {found.path.name} comes from another folder"
        )
    site.set_churn([(int(step), float(fwd), float(bwd)) for step, fwd, bwd in entry["churn"]])
