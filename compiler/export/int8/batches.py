"""The user's batches as named tensors, and what a file changes on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from topkast.compiler.export.flatten import Flat, Inputs
from topkast.compiler.export.program import first_line
from topkast.passes.onnx.switch_integers import SWITCHES
from topkast.runtime.errors import ConfigError
from topkast.runtime.onnx.session import Session

from .check_integers import Change

LOSS = "loss"  # the output of transformers models that counts alone, if a batch gives it


class Batches:
    """The batches as named tensors.

    Args:
        plain: the model; its signature gives the names.
        batches: each like ``example_inputs``.

    Raises:
        ConfigError: a batch does not fit the model, or the batches have different arguments.
    """

    def __init__(self, plain: nn.Module, batches: Sequence[Any]) -> None:
        self.inputs = list[Inputs]()
        self.outputs = list[dict[str, Tensor]]()
        for i, batch in enumerate(batches):
            try:
                inputs = Inputs(plain, batch)
                self.outputs.append(Flat(plain, inputs).named(*inputs.tensors))
            except Exception as error:
                raise ConfigError(f"calibration: the model does not run on batch {i}: {first_line(error)}") from error
            self.inputs.append(inputs)
            if inputs.names != self.inputs[0].names or list(self.outputs[i]) != list(self.outputs[0]):
                raise ConfigError(f"calibration: batch {i} has other arguments or outputs than batch 0")

    @property
    def has_loss(self) -> bool:
        """Whether the model gives a loss for them."""
        return LOSS in self.outputs[0] and self.outputs[0][LOSS].numel() == 1

    @property
    def loss(self) -> float | None:
        """The mean loss of the float32 model."""
        return math.fsum(float(y[LOSS]) for y in self.outputs) / len(self.outputs) if self.has_loss else None

    def change(self, session: Session, switches: Tensor | None = None) -> tuple[float, float]:
        """(the change of the loss, or of the outputs if there is none; the change of the outputs) by a file."""
        change, loss = Change(), 0.0
        for i, (inputs, wanted) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            feeds = dict(zip(inputs.names, inputs.tensors, strict=True))
            try:
                given = session.run(feeds if switches is None else feeds | {SWITCHES: switches})
            except Exception as error:
                raise ConfigError(
                    f"calibration: the exported file does not run on batch {i}; give batches of the examples' sizes, "
                    f"or name the axes that vary in dynamic_shapes ({first_line(error)})"
                ) from error
            change.add(wanted, given)
            if self.has_loss:
                loss += float(given[list(wanted).index(LOSS)]) / len(self.inputs)
        if self.loss is None:
            return change.largest(), change.largest()
        return (loss - self.loss) / abs(self.loss or 1.0), change.largest(without=LOSS)
