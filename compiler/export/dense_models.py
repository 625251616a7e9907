"""Traced programs as ONNX models, all written in the same way: dense first, then with weights as they are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor

from topkast.passes.onnx.convert import Wanted
from topkast.passes.onnx.formats import AUTO
from topkast.passes.onnx.metadata import Shrunk
from topkast.passes.onnx.time_formats import time_formats
from topkast.passes.onnx.writer import write
from topkast.runtime.kernels import native_library

from .dimensions.sizes import Sizes


@dataclass(frozen=True)
class Dense:
    """A model with dense weights in float32.

    Args:
        model: the model.
        wanted: how to store its weights.
        shrunk: the units that were removed.
    """

    model: ir.Model
    wanted: Wanted
    shrunk: list[Shrunk]


@dataclass(frozen=True)
class Models:
    """Writes models.

    Args:
        wanted: how to store weights; sizes and names of weights are added for each model.
        usual: sizes of dynamic dimensions that differ from those of the examples in most runs, by name.
        opset: the version of the standard operators.
    """

    wanted: Wanted
    usual: Mapping[str, int]
    opset: int

    def dense(
        self,
        program: torch.export.ExportedProgram,
        inputs: Sequence[str],
        tensors: Sequence[Tensor],
        sizes: Sizes,
        outputs: Sequence[str],
    ) -> Dense:
        """The dense model of a program.

        Args:
            program, tensors, sizes: as :func:`.program.trace` returns them.
            inputs, outputs: names, in order.
        """
        axes = dict(zip(inputs, sizes.names, strict=True))
        examples = {
            name: tensor.shape[axis]
            for tensor, named in zip(tensors, sizes.names, strict=True)
            for axis, name in named.items()
        }
        # Times without the kernels would say nothing of a machine that has them.
        timed = self.wanted.format == AUTO and (not self.wanted.library or native_library.path() is not None)
        wanted = replace(self.wanted, sizes=examples | dict(self.usual), timer=time_formats if timed else None)
        return Dense(*write(program, inputs, outputs, self.opset, axes, "model.", wanted))
