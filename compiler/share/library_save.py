"""``save_pretrained`` of transformers and huggingface_hub: a sparse model writes a dense model, with its sets beside.

The method of the library stays in charge of shards, tied weights, configs and uploads. While it runs, the model's
``state_dict()`` is the dense one, and the file ``topkast.safetensors`` is written when the library asks for the state
dict. A model without sparse weights is saved as before.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from topkast.compiler.convert.outside import CONVERTED
from topkast.runtime.errors import ModelError
from topkast.runtime.layout import Index
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.model import Record, owned_by
from topkast.runtime.state.persist.state_dict import STATE
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.snapshots import restore_snapshots

from .card import add_card, may_get_section
from .sets_file import Owned, file_name, place, w_a, write_sets
from .trainer_hub import extend_trainer

# Module -> the class in it whose ``save_pretrained`` writes whole models.
LIBRARIES = {"transformers.modeling_utils": "PreTrainedModel", "huggingface_hub.hub_mixin": "ModelHubMixin"}


def extend_libraries() -> None:
    """Let the libraries that are imported by now save sparse models."""
    extend_trainer()
    for module, name in LIBRARIES.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and not hasattr(kind.save_pretrained, "writes_sets"):
            kind.save_pretrained = extended(kind.save_pretrained)
            if hasattr(kind, "_upload_modified_files"):  # transformers writes its card after ``save_pretrained``
                kind._upload_modified_files = with_section(kind._upload_modified_files)


def extended(given: Any) -> Any:
    """A library's ``save_pretrained``, extended for models with sparse weights."""

    @functools.wraps(given)
    def save_pretrained(self: nn.Module, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        found = owned_by(self)
        extend_trainer()  # again, because a script may import Trainer after the conversion
        # With adapters of its own, a model of transformers writes the adapters and nothing else.
        if not found or getattr(self, "_hf_peft_config_loaded", False):
            return given(self, save_directory, *args, **kwargs)
        call = inspect.signature(given).bind(self, save_directory, *args, **kwargs)
        variant, state = call.arguments.get("variant"), call.arguments.get("state_dict")
        folder, main = Path(save_directory), bool(call.arguments.get("is_main_process", True))
        if state is not None and not _is_sparse(state):  # chosen by the caller, so the sets do not belong to it
            if main:
                (folder / file_name(variant)).unlink(missing_ok=True)
            return given(*call.args, **call.kwargs)
        sites = [site for site, _ in found.values()]
        for site in sites:
            site.check_trainable("save_pretrained")
        record = _record(self, sites[0])
        restore_snapshots(sites)
        if state is None:
            state = self.state_dict()
        else:
            call.arguments["state_dict"] = None

        def dense(*_: Any, **__: Any) -> Mapping[str, Any]:
            if main:
                write_sets(folder / file_name(variant), found, record, state)
            return dense_state(found, state)

        no_card = main and not (folder / "README.md").exists()
        vars(self)["state_dict"] = dense
        try:
            result = given(*call.args, **call.kwargs)
        finally:
            del vars(self)["state_dict"]
        if no_card and "_topkast" in vars(self):
            add_card(folder, self)
        return result

    save_pretrained.writes_sets = True  # type: ignore[attr-defined]
    return save_pretrained


def with_section(given: Any) -> Any:
    """The last step of transformers' ``push_to_hub``, with our section in the card that transformers just wrote."""

    @functools.wraps(given)
    def upload(self: nn.Module, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        card = Path(working_dir) / "README.md"
        if "_topkast" in vars(self) and card.exists() and may_get_section(card.read_text(encoding="utf-8")):
            add_card(card.parent, self)
        return given(self, working_dir, *args, **kwargs)

    return upload


def dense_state(found: Owned, state: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The dense state dict with W_A, from a sparse state dict. All keys of a tied weight share one tensor."""
    dense, keys = dict[str, Any](), dict[str, str]()
    for name, (site, owners) in found.items():
        values, rest = place(owners)
        dense[name] = w_a(site, state[values], Index(*(state[rest + field] for field in Index._fields)))
        keys |= {joined(*owner): name for owner in owners}
    kept = OrderedDict(
        (key, dense[keys[key]] if key in keys else value) for key, value in state.items() if not _is_sparse([key])
    )
    kept._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    return kept


def _is_sparse(keys: Any) -> bool:
    return any(f".{STATE}." in f".{key}" for key in keys)


def _record(part: nn.Module, site: SiteModule) -> Record:
    """The record of the whole model; the model that is saved can be a part of it.

    Raises:
        ModelError: the model is a part of a copy, and the copy's root is not known.
    """
    root = part if "_topkast" in vars(part) or site.family.root is None else site.family.root()
    if root is None or "_topkast" not in vars(root):
        raise ModelError(
            f"save_pretrained: this {type(part).__name__} is a part of a copy of a converted model; save the whole "
            "copy, or a part of topkast.densify(copy)"
        )
    return vars(root)["_topkast"]


CONVERTED.append(extend_libraries)
extend_libraries()
