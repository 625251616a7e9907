"""ONNX Runtime's own int8 files, made from a dense float32 file: what a sparse int8 file is compared with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)

from topkast.tools.common.onnx_sessions import Feeds


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else dict(batch)


def quantise_dynamically(path: Path, out: Path) -> Path:
    """Weights int8 per output channel; the scale of an input is found when the file runs."""
    _prepared(path, lambda file: quantize_dynamic(file, out, per_channel=True, weight_type=QuantType.QInt8))
    return out


def quantise_statically(path: Path, out: Path, batches: Sequence[Feeds]) -> Path:
    """Weights int8 per output channel; the scales of inputs are those of ``batches``, activations uint8."""
    _prepared(
        path,
        lambda file: quantize_static(
            file,
            out,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        ),
    )
    return out


def _prepared(path: Path, quantise: Callable[[Path], object]) -> None:
    """ONNX Runtime's own preparation first: it fuses what can be fused, so that less is quantised and read back."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name
            quant_pre_process(str(path), str(file), skip_symbolic_shape=True)
            quantise(file)
    finally:
        logging.root.setLevel(level)
