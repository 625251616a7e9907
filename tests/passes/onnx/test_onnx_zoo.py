"""Every format of small models of many kinds, on other sizes than at export: with the library and without, at once too.

A model is traced once; each format is then written from its dense file, as the export does it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.compiler.export import parity
from topkast.passes.onnx.convert import Wanted
from topkast.runtime import native
from topkast.tests.support.models.exported import ZOO, Exported, first
from topkast.tests.support.models.product_files import session
from topkast.tests.support.protobuf import convert
from topkast.tests.support.stated import assert_stated

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")
FORMATS = ["auto", "custom", "block", "compact", "sparse_initializer", "dense"]


def halved(case: Exported) -> nn.Module:
    """Sparse, with weights that float16 holds, so that one trace serves both precisions."""
    model = topkast.sparsify(case.model(), 0.75, min_size=100, block=case.block, balanced=case.block == (16, 16))
    weights = {key: value.half().float() for key, value in topkast.dense_state_dict(model).items()}
    topkast.load_dense_state_dict(model, weights)
    return model


def trials(case: Exported, model: nn.Module) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """(inputs, PyTorch's output, that of float64) for the sizes at export, larger ones and a batch of one."""
    torch.manual_seed(1)
    plain, exact, found = topkast.densify(model).eval(), topkast.densify(model).eval().double(), []
    for sizes in (case.sizes, {key: size + 3 for key, size in case.sizes.items()}, case.sizes | {"batch": 1}):
        given = case.inputs(**sizes)
        wide = {key: t.double() if t.is_floating_point() else t for key, t in given.items()}
        with torch.no_grad():
            found.append((given, first(plain(**given)), first(exact(**wide))))
    return found


def feeds(made: onnxruntime.InferenceSession, given: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {value.name: given[value.name].numpy() for value in made.get_inputs()}


@pytest.mark.long
@pytest.mark.parametrize("name", ZOO)
def test_every_format(name: str, tmp_path: Path) -> None:
    case = ZOO[name]
    model = halved(case)
    shapes: Any = {
        key: {axis: torch.export.Dim(dim, min=1, max=16) for axis, dim in axes.items()}
        for key, axes in case.dynamic.items()
    }
    path = tmp_path / "dense.onnx"
    torch.manual_seed(2)
    exported = topkast.export(
        model, path, case.inputs(**case.sizes), format="dense", dynamic_shapes=shapes, verify=False
    )
    assert set(exported.inputs) == set(case.dynamic)
    for key, axes in case.dynamic.items():
        assert all(exported.inputs[key][axis] == dim for axis, dim in axes.items())
    expected = trials(case, model)
    for format in FORMATS:
        for half in (False, True):
            file = onnx.load(path)
            sites = convert(file, Wanted(format, "fp16" if half else "fp32", [case.block], sizes=case.sizes))
            sparse = [site for site in sites if site.density < 0.6]
            assert sparse and all(site.format in (format, "dense") or format == "auto" for site in sparse)
            # "block" takes square blocks only; with indices of eight bytes, a quarter of float16 weights is no smaller,
            # nor half of float32 ones, which dead units taken out may leave.
            large = format[:6] == "sparse" and (half or min(site.density for site in sparse) > 1 / 3)
            left = format == "auto" or (format == "block" and case.block != (16, 16)) or large
            assert left or any(site.format == format for site in sparse)
            assert_stated(file, {key: t.numpy() for key, t in expected[1][0].items()}, format)
            stock = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
            for made in (stock, session(file)):
                for given, plain, exact in expected:
                    y = torch.from_numpy(made.run(None, feeds(made, given))[0])
                    error, bound = parity._error(y, plain, exact)
                    assert error <= bound, f"{format} half={half} {[list(t.shape) for t in given.values()]}"
    # One session is asked from several threads, with all sizes.
    file = onnx.load(path)
    convert(file, Wanted("custom", blocks=[case.block]))
    made = session(file)
    alone = [made.run(None, feeds(made, given))[0] for given, _, _ in expected]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda i: made.run(None, feeds(made, expected[i % 3][0]))[0], range(24))
        assert all(np.array_equal(y, alone[i % 3]) for i, y in enumerate(together))
