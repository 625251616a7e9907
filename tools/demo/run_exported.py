"""Export the trained model and run the file in ONNX Runtime, apart from the check that the export itself makes.

What is timed beside it is the dense export of the same weights.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.runtime import native
from topkast.tools.common.onnx_sessions import runner, session
from topkast.tools.common.pairs import measure

PAIRS = 40  # of runs of the dense and the sparse file


def run_exported(model: nn.Module, path: Path, x: Tensor, y: Tensor, threads: int) -> dict[str, Any]:
    """Export `model` (bytes in, `.logits` out) to `path`, with a dense file beside it, and run them in ONNX Runtime.

    Args:
        model: trained.
        path: of the sparse file.
        x, y: text [batch, length], and what follows each byte.
        threads: of either session.
    """
    model.eval()
    start = time.perf_counter()
    result = topkast.export(model, path, (x,))
    seconds = time.perf_counter() - start
    assert result.max_error is not None
    with torch.no_grad():
        expected = model(input_ids=x).logits.float().cpu()
    dense = topkast.export(model, path.with_name("dense.onnx"), (x,), format="dense")
    sessions = [session(file, threads, native.path()) for file in (dense.path, path)]
    feeds = {next(iter(result.inputs)): x.cpu().numpy()}
    logits = torch.from_numpy(sessions[1].run(None, feeds)[0])
    in_dense, in_sparse = ([runner(made, feeds)] for made in sessions)
    pairs = measure(in_dense, in_sparse, PAIRS)

    def bits(values: Tensor) -> float:
        return F.cross_entropy(values.flatten(0, 1), y.cpu().flatten()).item() / math.log(2)

    return {
        "path": str(result.path),
        "bytes": {"dense": dense.bytes, "sparse": result.bytes},
        "run": {"ratio": pairs.ratio(), "seconds": pairs.seconds(), "pairs": PAIRS, "threads": threads},
        "formats": Counter(site.format for site in result.sites),
        "seconds": seconds,
        "max error at export": float(result.max_error),
        "max error on text": (logits - expected).abs().max().item(),
        "largest logit": expected.abs().max().item(),
        "bits per byte, ONNX Runtime": bits(logits),
        "bits per byte, PyTorch": bits(expected),
    }
