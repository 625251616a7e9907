"""``Trainer`` of transformers resumes a sparse model from its checkpoint folder.

Trainer reads the dense tensors of the folder and gives them to ``load_state_dict``, without the folder's name. So the
hook that refuses dense state dicts looks up the folder in the Trainer's own frame, and takes the sparse state from the
file beside the dense one.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from topkast.compiler.checkpoint.file import config_entries, describe
from topkast.compiler.checkpoint.validate import check_config, check_sites
from topkast.compiler.config import Config
from topkast.compiler.convert.outside import DENSE_STATES
from topkast.runtime.errors import CheckpointError
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.model import find, owned
from topkast.runtime.state.persist.state_dict import keys

from .sets_file import file_name, read_sets

TRAINER = "transformers.trainer"


def sparse_state_of_trainer(module: nn.Module, state: dict[str, Any], prefix: str) -> bool:
    """Put the sparse state of a Trainer's checkpoint folder in the place of the dense state. False: no Trainer loads,
    or its folder holds no sparse state.

    Raises:
        CheckpointError: the folder belongs to another model or config.
    """
    folder = _folder()
    if folder is None or not (folder / file_name()).is_file():
        return False
    found = read_sets(folder / file_name())
    root, record = find(module)
    own = owned(root)
    check_config(found.path, config_entries(record), {**asdict(Config()), **found.config})
    check_sites(found.path, {name: describe(site) for name, (site, _) in own.items()}, found.sites)
    for name, (site, owners) in own.items():
        entry, tensors = found.sites[name], found.tensors_of(name)
        for path, attribute in owners:
            values, rest = keys(joined(prefix + path if path else prefix.rstrip("."), ""), attribute)
            state.pop(values, None)
            state[values] = tensors.get(entry["values"])
            for key, tensor in tensors.items():
                if key != entry["values"]:
                    state[rest + key.removeprefix(entry["rest"])] = tensor
        if state[values] is None:
            raise CheckpointError(f"{found.path}: missing tensors: {entry['values']}")
        site.set_seed(entry["seed"])
        site.set_churn([(int(step), float(fwd), float(bwd)) for step, fwd, bwd in entry["churn"]])
    return True


def _folder() -> Path | None:
    """The folder from which a Trainer on the stack loads weights now: a checkpoint, or the best one of a run."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == TRAINER:
            name = frame.f_code.co_name
            if name == "_load_from_checkpoint":
                return Path(frame.f_locals["resume_from_checkpoint"])
            if name == "_load_best_model":
                return Path(frame.f_locals["self"].state.best_model_checkpoint)
        frame = frame.f_back
    return None


DENSE_STATES.append(sparse_state_of_trainer)
