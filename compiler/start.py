"""The options that a conversion needs and the converted model does not keep."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from topkast.compiler.options import device_mesh, option, optional, options


@dataclass(frozen=True)
class Start:
    """The options that only the conversion itself needs; the model does not keep them."""

    example_inputs: Any = option(
        None,
        "What the model is called with, to trace which parameters are weights of which ops.",
        "A tuple holds positional arguments, a dict holds keywords; a tensor is the only argument. None: the model's "
        "own ``dummy_inputs``, else symbolic tracing, else the structure of the modules; the report says which.",
    )
    init: Callable[[nn.Module], Any] | str | os.PathLike[str] | None = option(
        None,
        "For a model on the meta device: a function that initialises a module, or the path of a dense checkpoint in "
        "safetensors; None means the model's ``_init_weights`` and the modules' own ``reset_parameters``.",
        'Such a model was built under ``torch.device("meta")``. The function is called with every module in the order '
        "of ``nn.Module.apply``, and fills the tensors that the module holds. None: the nearest "
        "``_init_weights(module)`` at or above a module initialises it (transformers); if that does not write to all "
        "of its tensors, its own ``reset_parameters()`` comes first. Each weight becomes sparse as soon as no later "
        "module's initialisation touches it, so about one module is dense at any time. The function is run on the "
        "meta tensors before, to see what it touches. The parameters become new objects: make the optimizer "
        "afterwards. A path is a file, or a folder with ``model.safetensors`` or with shards and their index; one "
        "tensor is read at a time. A parameter that is not in the checkpoint is initialised as for None, with a "
        "warning.",
    )
    device: Any = option(None, "For a model on the meta device: where its tensors are made; None means the CPU.")
    mesh: Any = option(
        None,
        "For FSDP2: the device mesh that torch's ``fully_shard`` will be called with; None means another way to train.",
        "A mesh of one dimension, or of two (replicas, parts). The model must be the same on every rank. The positions "
        "of the sparse weights become frozen parameters, so that ``fully_shard`` shards them together with the values. "
        "Without it they are replicated: right too, but each rank holds and receives all of them. Of a model on the "
        "meta device each rank keeps only its part of each weight: call ``fully_shard`` with this mesh before any "
        "other use.",
        check=optional(device_mesh),
    )

    def __post_init__(self) -> None:
        for one in options(Start):
            one.check(one.name, getattr(self, one.name))
