"""Run an ONNX file in ONNX Runtime, on the CPU, with tensors in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor


class Session:
    """An ONNX Runtime session.

    Args:
        path: the path of the file.
        library: the library of our kernels to register; None for ONNX Runtime without them.

    Raises:
        Any error of ONNX Runtime, if it cannot load the file.
    """

    def __init__(self, path: Path, library: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @property
    def inputs(self) -> dict[str, list[int | str]]:
        """Name -> shape. A dynamic dimension is its name."""
        return {value.name: list(value.shape) for value in self._session.get_inputs()}

    @property
    def outputs(self) -> dict[str, list[int | str]]:
        """Name -> shape, as for :attr:`inputs`."""
        return {value.name: list(value.shape) for value in self._session.get_outputs()}

    def run(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """The outputs for named inputs. Inputs that the graph does not have are ignored."""
        feeds = {name: np.ascontiguousarray(tensors[name].detach().cpu().numpy()) for name in self.inputs}
        return [torch.from_numpy(np.array(value)) for value in self._session.run(None, feeds)]
