"""Fill a model on the meta device from a dense checkpoint in safetensors, one tensor at a time."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from topkast.runtime.errors import CheckpointError

from .tensors import held

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
RESETS = ("reset_parameters", "_reset_parameters")  # the second is nn.MultiheadAttention's


class FromFile:
    """An initialiser of modules, as ``init`` of :func:`topkast.compile`: it reads the module's own tensors.

    A tensor that is not in the checkpoint gets its values from the model's own initialiser; a warning names such
    parameters. Buffers that are computed (positions, masks) are such tensors too, without a warning.

    Args:
        model: on the meta device.
        source: a safetensors file, or a folder with ``model.safetensors`` or with shards and their index.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor has another shape, or no parameter is in the checkpoint.
    """

    def __init__(self, model: nn.Module, source: str | os.PathLike[str]):
        self.source = Path(source)
        shapes = self._shapes()
        self.keys: dict[tuple[int, str], str] = {}  # (id of a module, attribute) -> key in the checkpoint
        self.rules: dict[int, Any] = {}
        missing, wrong, parameters = [], [], 0
        names = _names(model)
        for owners in held(model).values():
            module, attribute = owners[0]
            tensor = getattr(module, attribute)
            key = next((k for owner in owners for k in _keys(model, names, *owner) if k in shapes), None)
            if key is None:
                if isinstance(tensor, nn.Parameter):
                    missing.append(names[id(module)] + attribute)
                continue
            parameters += isinstance(tensor, nn.Parameter)
            if shapes[key] != tuple(tensor.shape):
                wrong.append(f"{key}: shape {shapes[key]} in the checkpoint, {tuple(tensor.shape)} in the model")
            self.keys.update({(id(owner), name): key for owner, name in owners})
        if not parameters:
            wrong.append(f"no parameter of the model; the model's begin {missing[:3]}, the file's {sorted(shapes)[:3]}")
        if wrong:
            raise CheckpointError(f"{self.source}: a checkpoint of another model: {'; '.join(wrong[:8])}")
        if missing:
            warnings.warn(f"{self.source} does not hold {', '.join(missing)}: initialised anew", stacklevel=2)

    def use_rules(self, rules: dict[int, Any]) -> None:
        """Set the model's own initialisers: id of a module -> the nearest ``_init_weights`` at or above it."""
        self.rules = rules

    def __call__(self, module: nn.Module) -> None:
        own = {name: t for name, t in {**module._parameters, **module._buffers}.items() if t is not None}
        if any((id(module), name) not in self.keys for name in own):
            self._initialise(module)
        for name in own:
            if (key := self.keys.get((id(module), name))) is not None:
                self._fill(getattr(module, name), key)

    def _initialise(self, module: nn.Module) -> None:
        for reset in RESETS:
            if callable(getattr(module, reset, None)):
                getattr(module, reset)()
                break
        if (rule := self.rules.get(id(module))) is not None:
            rule(module)

    @torch.no_grad()
    def _fill(self, tensor: Tensor, key: str) -> None:
        if tensor.is_meta:
            tensor.zero_()  # a rehearsal only sees that the tensor is written
            return
        with safe_open(self.files[key], framework="pt") as file:
            tensor.copy_(file.get_tensor(key))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of every tensor of the checkpoint. The file of each key is kept as ``files``."""
        self.files: dict[str, Path] = {}
        found: dict[str, tuple[int, ...]] = {}
        for path in self._paths():
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file")
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 (the file is no dict)
                        found[key] = tuple(file.get_slice(key).get_shape())
                        self.files[key] = path
            except SafetensorError as error:
                raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
        return found

    def _paths(self) -> list[Path]:
        index = self.source / INDEX
        if not self.source.is_dir():
            return [self.source]
        if not index.is_file():
            return [self.source / SINGLE]
        try:
            return sorted({self.source / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: broken ({error})") from error


def _names(model: nn.Module) -> dict[int, str]:
    """Id of a module -> the prefix of its tensors' names."""
    return {id(module): f"{path}." if path else "" for path, module in model.named_modules()}


def _keys(model: nn.Module, names: dict[int, str], module: nn.Module, attribute: str) -> list[str]:
    """The keys that a tensor can have. transformers saves a base model with or without its place in a whole model."""
    name, base = names[id(module)] + attribute, getattr(model, "base_model_prefix", "")
    return [name, f"{base}.{name}", name.removeprefix(f"{base}.")] if base else [name]
