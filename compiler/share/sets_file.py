"""The file ``topkast.safetensors`` beside a dense model: sets, all of θ, config and clock of every sparse weight.

The header has the form of :func:`topkast.save`'s, with a version of its own. The tensors are those of a state dict that
belong to sparse weights. Everything else is in the model's own files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkast.compiler.checkpoint.file import config_entries, describe, own_version
from topkast.compiler.checkpoint.pack import alone, read, write
from topkast.compiler.checkpoint.schema import check_format, parsed
from topkast.compiler.checkpoint.validate import check_supported
from topkast.runtime.errors import CheckpointError
from topkast.runtime.layout import Index
from topkast.runtime.reference.products import weight
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.model import Record
from topkast.runtime.state.persist.saved_form import columns_of
from topkast.runtime.state.persist.saved_index import as_plain
from topkast.runtime.state.persist.state_dict import keys
from topkast.runtime.state.site_module import SiteModule

FORMAT = "topkast-sets"
VERSION = 1

# The fields of a weight's entry and their types; how the weight is cut into units is checked with the model.
FIELDS = {
    "name": str,
    "balanced": bool,
    "values": str,
    "rest": str,
    "ops": list,
    "positions": (int, type(None)),
    "scaled": (int, float),
    "seed": int,
    "n_fwd": int,
    "n_bwd": int,
    "churn": list,
}

Owned = Mapping[str, tuple[SiteModule, list[tuple[str, str]]]]  # as topkast.runtime.state.model.owned_by returns it


def file_name(variant: str | None = None) -> str:
    """The name of the file in a folder, for a ``variant`` of transformers (``model.<variant>.safetensors``)."""
    return f"topkast.{variant}.safetensors" if variant else "topkast.safetensors"


def place(owners: list[tuple[str, str]]) -> tuple[str, str]:
    """(Key of the values, prefix of the rest) of a site in a state dict, under its first owner."""
    path, attribute = owners[0]
    return keys(joined(path, ""), attribute)


def w_a(site: SiteModule, values: Tensor, index: Index) -> Tensor:
    """W_A, dense and in memory of its own, from tensors of a state dict."""
    row_ptr, row_fwd, cols = map(as_plain, index)
    index = Index(row_ptr, row_fwd, columns_of(cols, site.geometry.grid[1]))
    return alone(weight(values.reshape(-1), index, site.geometry))


def write_sets(path: Path, found: Owned, record: Record, state: Mapping[str, Any]) -> None:
    """Write the file, completely or not at all.

    Args:
        path: the path of the file.
        found: the sites, with names relative to the model that is saved.
        record: the record of the converted model.
        state: the state dict of the model that is saved.
    """
    tensors: dict[str, Tensor] = {}
    sites: dict[str, Any] = {}
    for name, (site, owners) in found.items():
        values, rest = place(owners)
        tensors[values] = state[values]
        tensors |= {key: tensor for key, tensor in state.items() if key.startswith(rest)}
        sites[name] = {
            **describe(site),
            "name": site.name,
            "balanced": site.rule.balanced,
            "values": values,
            "rest": rest,
            "ops": record.ops[site.name],
            "positions": record.positions[site.name],
            "scaled": record.scaled.get(site.name, 1.0),
        }
    header = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "topkast_version": own_version(),
        "torch_version": str(torch.__version__),
        "step": str(max(site.step for site, _ in found.values())),
        "config": json.dumps(config_entries(record)),
        "sites": json.dumps(sites),
        "dense": json.dumps(record.dense),
        "how": record.how,
        "backend": record.backend,
    }
    write(path, tensors, header)


@dataclass(frozen=True)
class SetsFile:
    """A file that was read.

    Args:
        path: the path of the file.
        config: the options of the conversion.
        sites: name of the weight -> its entry.
        dense: parameter name -> why it stayed dense.
        how: how the model was traced.
        backend: the backend that the model was compiled with.
        tensors: state-dict key -> tensor.
    """

    path: Path
    config: dict[str, Any]
    sites: dict[str, dict[str, Any]]
    dense: dict[str, str]
    how: str
    backend: str
    tensors: dict[str, Tensor]

    def tensors_of(self, name: str) -> dict[str, Tensor]:
        """The tensors of one weight."""
        values, rest = self.sites[name]["values"], self.sites[name]["rest"]
        return {key: tensor for key, tensor in self.tensors.items() if key == values or key.startswith(rest)}


def read_sets(path: Path) -> SetsFile:
    """Read the file.

    Raises:
        CheckpointError: there is no such file, or the file is damaged, has another format or a newer version, or holds
            an option's value that this version refuses.
    """
    header, tensors = read(path)
    check_format(path, header, FORMAT, VERSION, "not the sets of a sparse model", own_version())
    config, sites, dense = (parsed(path, header, key) for key in ("config", "sites", "dense"))
    check_supported(path, config, header.get("topkast_version", "?"))
    for name, entry in sites.items():
        for field, kind in FIELDS.items():
            if not isinstance(entry.get(field), kind):  # type: ignore[arg-type]
                raise CheckpointError(f"{path}: {name}: the header's entry has {field}={entry.get(field)!r}")
    return SetsFile(path, config, sites, dense, header.get("how", "?"), header.get("backend", "not compiled"), tensors)
