"""Files of one linear layer, dense and in a format, without a model around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from topkast.passes.onnx.convert import Wanted, convert
from topkast.passes.onnx.writer import save
from topkast.tools.bench.layer import block_name


@dataclass(frozen=True)
class LayerFile:
    """y = x W^T + b, W [out, in] with random blocks, as two files."""

    dense: Path
    sparse: Path
    shape: tuple[int, int]
    block: tuple[int, int]
    sparsity: float
    format: str
    written: str


def layer_files(
    folder: Path, shape: tuple[int, int], block: tuple[int, int], sparsity: float, format: str, precision: str = "fp32"
) -> LayerFile:
    """Write both. The blocks of the format "block" are balanced, as it wants them; others are spread at random."""
    matrix = random_matrix(shape, block, sparsity, balanced=format == "block")
    dense_path, sparse_path = (
        folder / f"{kind}-{format}-{block_name(block)}-{precision}.onnx" for kind in ("dense", "sparse")
    )
    onnx.save(layer(matrix), dense_path)
    model = ir.load(dense_path)
    ((site,), _) = convert(model, Wanted(format, precision, blocks=[block], sizes={"m": 32}))
    save(model, sparse_path)
    return LayerFile(dense_path, sparse_path, shape, block, sparsity, format, site.format)


def random_matrix(shape: tuple[int, int], block: tuple[int, int], sparsity: float, balanced: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    grid = [-(-size // part) for size, part in zip(shape, block, strict=True)]
    score = rng.random(grid)
    if balanced:
        kept = max(1, round(grid[1] * (1 - sparsity)))
        mask = score.argsort(axis=1).argsort(axis=1) < kept
    else:
        mask = score < np.quantile(score, 1 - sparsity)
    spread = np.kron(mask, np.ones(block, bool))[: shape[0], : shape[1]]
    return np.where(spread, rng.standard_normal(shape).astype(np.float32), np.float32(0))


def layer(matrix: np.ndarray) -> onnx.ModelProto:
    """The dense file, as torch.onnx.export writes a Linear of two-dimensional inputs."""
    out, columns = matrix.shape
    constants = [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(np.ones(out, np.float32), "b")]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size])
        for name, size in (("x", columns), ("y", out))
    )
    graph = helper.make_graph(nodes, "layer", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
