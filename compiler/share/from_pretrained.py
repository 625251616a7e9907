"""``topkast.from_pretrained``: a sparse model from a shared folder, with its sets, all of θ and its config."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from topkast.compiler.backend import BACKEND, compile_module
from topkast.runtime.errors import CheckpointError, ConfigError

from .sets_file import file_name, read_sets
from .use_sets import use_sets


def from_pretrained(
    folder: str | os.PathLike[str], kind: Any = None, *, backend: str | None = None, **options: Any
) -> Any:
    """Load a sparse model from a folder that ``save_pretrained`` of a sparse model wrote. The model trains on as the
    saved one would: sets, all of θ, clock and config are equal, bit for bit.

    The library loads the dense model first. Then each weight becomes sparse again, with the sets of the file
    ``topkast.safetensors``. The optimizer is not in the folder; ``Trainer`` keeps it beside, and :func:`topkast.save`
    keeps it in its file.

    Args:
        folder: a local folder. ``huggingface_hub.snapshot_download(name)`` brings one from the hub.
        kind: the class of the model, or any function with the arguments of its ``from_pretrained``. None: the class of
            transformers that ``config.json`` names.
        backend: as for :func:`topkast.compile`. None: the backend that the saved model had; a model that was converted
            by :func:`topkast.sparsify` is not compiled.
        options: further arguments of the class's ``from_pretrained``, for example ``variant`` or ``device_map``.

    Returns:
        The model, in evaluation mode as the library returns it; call ``model.train()`` in a loop of your own.

    Raises:
        CheckpointError: there is no ``topkast.safetensors``; the file is damaged or of a newer version; or the file and
            the dense model in the folder do not belong together.
        ConfigError: ``backend`` is another word, or the class is not known and ``kind`` is None.
    """
    if backend is not None:
        BACKEND.check(BACKEND.name, backend)
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; huggingface_hub.snapshot_download(name) brings one from the hub"
        )
    path = folder / file_name(options.get("variant"))
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: holds no {path.name}, so it is no folder of a sparse model; load a dense model with its own "
            "library and call topkast.compile"
        )
    found = read_sets(path)
    load = _class_of(folder) if kind is None else kind
    model = getattr(load, "from_pretrained", load)(folder, **options)
    use_sets(model, found)
    chosen = found.backend if backend is None else backend
    if chosen in ("inductor", "aot_eager", "eager"):
        model._topkast.backend = chosen
        compile_module(model, chosen, {})
    return model


def _class_of(folder: Path) -> Any:
    """The class of transformers that a folder's ``config.json`` names."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"kind: {folder} has no config.json with architectures, so give the model's class") from error
    kind = getattr(import_module("transformers"), str(name), None)
    if not hasattr(kind, "from_pretrained"):
        raise ConfigError(
            f"kind: config.json names {name!r}, which is no model of transformers; give the model's class"
        )
    return kind
