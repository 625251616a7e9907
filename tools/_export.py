"""Export the trained model and run the file in ONNX Runtime, apart from the check that the export itself makes."""

from __future__ import annotations

import math
import time
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast


def run_exported(model: nn.Module, path: Path, x: Tensor, y: Tensor) -> dict[str, object]:
    """Export `model` (bytes in, `.logits` out) to `path` and compare both on the text `x`, `y` [batch, length]."""
    model.eval()
    start = time.perf_counter()
    result = topkast.export(model, path, (x,))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        expected = model(input_ids=x).logits.float().cpu()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    logits = torch.from_numpy(session.run(None, {given: x.cpu().numpy()})[0])

    def bits(values: Tensor) -> float:
        return F.cross_entropy(values.flatten(0, 1), y.cpu().flatten()).item() / math.log(2)

    return {
        "path": str(result.path),
        "bytes": result.bytes,
        "seconds": seconds,
        "max error at export": float(result.max_error),
        "max error on text": (logits - expected).abs().max().item(),
        "largest logit": expected.abs().max().item(),
        "bits per byte, ONNX Runtime": bits(logits),
        "bits per byte, PyTorch": bits(expected),
    }
