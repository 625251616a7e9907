"""Check a file's int8 products to the last bit, and measure how far its outputs are from the float32 model's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from topkast.passes.onnx.convert import Wanted, convert
from topkast.passes.onnx.integers import IntegerProduct, Integers
from topkast.passes.onnx.metadata import SiteResult
from topkast.passes.onnx.show_integers import show_integers
from topkast.passes.onnx.time_formats import in_float
from topkast.passes.onnx.writer import remove, save, save_proto
from topkast.runtime.errors import ExportError
from topkast.runtime.onnx.session import Session
from topkast.runtime.reference.int8 import conv_int8, spmm_int8, spmm_int8_of_tensor


def check_integers(file: Path, integers: Integers, inputs: Mapping[str, Tensor], library: Path | None) -> None:
    """Run a copy of the file that shows the x and the y of each int8 product, and compare each y bit for bit with the
    same integer arithmetic in PyTorch on the same x. Weights that are unpacked from int8 are compared too.

    Args:
        file: the path of the file.
        integers: what is in int8 in the file.
        inputs: of the file, by name.
        library: the library of topkast's kernels: the copy is run with it and without. None: only without.

    Raises:
        ExportError: a bit differs.
    """
    model = onnx.load(str(file))
    products, weights = show_integers(model, integers)
    shown = file.with_name(f"shown.{file.name}")
    try:
        save_proto(model, shown)
        del model
        for used in (None,) if library is None else (None, library):
            session = Session(shown, used)
            outputs = dict(zip(session.outputs, session.run(dict(inputs)), strict=True))
            how = "" if used is None else " with topkast's library"
            for product, (x, y) in zip(integers.products, products, strict=True):
                _compare(product.weight, outputs[y], expected(product, outputs[x]), how)
            for weight, name in zip(integers.weights, weights, strict=True):
                unpacked = torch.tensor(weight.values).float() * torch.tensor(weight.scale)
                _compare(weight.weight, outputs[name], unpacked, how)
    finally:
        remove(shown)


def expected(product: IntegerProduct, x: Tensor) -> Tensor:
    """What the product gives for x, by integer arithmetic in PyTorch."""
    weight, scale = torch.tensor(product.matrix.values), torch.tensor(product.matrix.scale)
    bias = None if product.bias is None else torch.tensor(product.bias)
    conv = product.conv
    if conv is not None and not conv.is_pixelwise:
        given = conv.attributes
        filters = weight.reshape(len(weight), conv.channels, *given["kernel_shape"])
        return conv_int8(x, filters, scale, bias, given["strides"], given["pads"], given["dilations"], conv.group)
    rows = x if conv is None else x.movedim(1, -1)
    compute = spmm_int8_of_tensor if product.values is None else spmm_int8
    y = compute(rows.reshape(-1, rows.shape[-1]), weight, scale, bias).reshape(*rows.shape[:-1], -1)
    return y if conv is None else y.movedim(-1, 1)


def _compare(name: str, given: Tensor, wanted: Tensor, how: str) -> None:
    """Raise ExportError unless all bits are equal; any NaN equals any other."""
    bits = [torch.where(y.isnan(), 0, y).view(torch.int32) for y in (given, wanted)]
    if given.shape != wanted.shape or not torch.equal(given.isnan(), wanted.isnan()) or not torch.equal(*bits):
        raise ExportError(
            f"{name}: ONNX Runtime{how} does not compute the int8 product as integer arithmetic in PyTorch does "
            f"(shapes {list(given.shape)} and {list(wanted.shape)})"
        )


@contextlib.contextmanager
def in_float32(file: Path, dense: ir.Model, wanted: Wanted, sites: Sequence[SiteResult]) -> Iterator[Path]:
    """The path of a file with the same weights in float32, each in the same format; the file is removed afterwards.

    Args:
        file: the path of the file with int8; the other file stands beside it.
        dense: the model with dense weights, which is changed.
        wanted: how the weights of ``file`` are stored.
        sites: what became of them.
    """
    other = file.with_name(f"float.{file.name}")
    try:
        convert(dense, in_float(wanted, sites))
        save(dense, other)
        yield other
    finally:
        remove(other)


def distance(file: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> float:
    """The change of the outputs by int8, see :class:`Change`: ``outputs`` are the float32 model's for ``inputs``."""
    change = Change()
    change.add(outputs, Session(file).run(dict(inputs)))
    return change.largest()


class Change:
    """How much outputs change, over several runs: for each output the root mean square of the difference, as a share of
    the root mean square of the float32 model's output."""

    def __init__(self) -> None:
        self._sums = dict[str, tuple[float, float]]()

    def add(self, wanted: Mapping[str, Tensor], given: Sequence[Tensor]) -> None:
        """One run: the float32 model's outputs, and those of the file. Outputs of integers do not count."""
        for (name, b), a in zip(wanted.items(), given, strict=True):
            if b.is_floating_point():
                finite = b.isfinite()
                known, exact = a.double()[finite], b.double()[finite]
                difference, size = self._sums.get(name, (0.0, 0.0))
                difference += float((known - exact).square().sum())
                self._sums[name] = difference, size + float(exact.square().sum())

    def largest(self, without: str = "") -> float:
        """The largest of all outputs; ``without``: the name of an output that does not count if there are others."""
        named = {name: pair for name, pair in self._sums.items() if name != without} or self._sums
        shares = (float("inf") if not size else difference / size for difference, size in named.values() if difference)
        return max(shares, default=0.0) ** 0.5
