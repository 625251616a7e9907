"""Native code refuses tensors of other sizes, or without memory of their own, before it runs: every entry, every
argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.distributed.tensor import DTensor, Replicate

import topkast
from topkast.runtime import native, operands, triton
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native import convolution, densified, grouped, products
from topkast.runtime.native import sets as native_sets
from topkast.runtime.native import theta as native_theta
from topkast.runtime.reference.products import ConvArgs
from topkast.runtime.triton import products as triton_products
from topkast.runtime.triton import single, transient
from topkast.tests.support.truth.product_layouts import sets

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")
GEOMETRY, IMAGES = Geometry((24, 10), (0, 1), 1, (4, 1)), Geometry((24, 10, 3), (0, 1, 2), 1, (4, 1))
STACK, PLAIN = Geometry((3, 8, 10), (0, 1, 2), 2, (4, 1)), ConvArgs([1], [1], [1], False, [0], 1)
Entry = tuple[Callable[..., Any], dict[str, Tensor]]


def weight(geometry: Geometry) -> tuple[Index, dict[str, Tensor]]:
    torch.manual_seed(0)
    index = sets(geometry, 0.2, 0.5)
    values = torch.randn(index.cols.numel() * geometry.unit)
    return index, {**index._asdict(), "values": values}


def entries() -> dict[str, Entry]:
    """Every native entry with operands that fit: a function of tensors by name, and these."""
    of, found = torch.randn, dict[str, Entry]()

    def add(name: str, run: Callable[..., Any], g: Geometry, without: str = "", **own: Tensor) -> None:
        given = {**weight(g)[1], **own}
        given.pop(without, None)

        def call(row_ptr: Tensor, row_fwd: Tensor, cols: Tensor, **rest: Tensor) -> Any:
            return run(index=Index(row_ptr, row_fwd, cols), geometry=g, **rest)

        found[name] = call, given

    index, _ = weight(GEOMETRY)
    reservoir, ends = of((GEOMETRY.units - int(index.row_ptr[-1])) * GEOMETRY.unit), torch.tensor([2, 2, 5])
    add("spmm", products.spmm, GEOMETRY, x=of(5, 10), bias=of(24))
    add("spmm, stacked", lambda **a: products.spmm(**a, bias=None), STACK, x=of(3, 5, 10))
    add("spmm_t", products.spmm_t, GEOMETRY, dy=of(5, 24))
    add("spmm_t, stacked", products.spmm_t, STACK, dy=of(3, 5, 8))
    add("sddmm", products.sddmm, GEOMETRY, "values", dy=of(5, 24), x=of(5, 10))
    add("sddmm, stacked", products.sddmm, STACK, "values", dy=of(3, 5, 8), x=of(3, 5, 10))
    add("grouped_spmm", grouped.grouped_spmm, STACK, x=of(5, 10), ends=ends)
    add("grouped_spmm_t", grouped.grouped_spmm_t, STACK, dy=of(5, 8), ends=ends)
    add("grouped_sddmm", grouped.grouped_sddmm, STACK, "values", dy=of(5, 8), x=of(5, 10), ends=ends)
    x, dy = of(2, 10, 7), of(2, 24, 7)
    add("conv", lambda **a: convolution.conv(**a, args=PLAIN), IMAGES, x=x, bias=of(24))
    add("conv_input_grad", lambda **a: convolution.conv_input_grad(**a, args=PLAIN), IMAGES, dy=dy, x=x)
    add("conv_weight_grad", lambda **a: convolution.conv_weight_grad(**a, args=PLAIN), IMAGES, "values", dy=dy, x=x)
    add("weight", densified.weight, GEOMETRY)
    add("weight_grad", densified.weight_grad, GEOMETRY, "values", grad=of(24, 10))
    add("squares", densified.squares, GEOMETRY)
    add("scale_explored", densified.scale_explored_once, GEOMETRY, factor=of(1))
    add("assemble", native_theta.assemble, GEOMETRY, reservoir=reservoir)
    add("store", native_theta.store, GEOMETRY, theta=of(24, 10), reservoir=reservoir)
    add("follow", lambda index, values, geometry: native_theta.follow(values, index, index, geometry), GEOMETRY)
    a, b = torch.rand(6, 10) < 0.2, torch.ones(6, 10, dtype=torch.bool)
    found["build_index"] = lambda fwd, bwd: native_sets.build_index(fwd, bwd, 60), {"fwd": a, "bwd": b}
    found["largest"] = lambda score: native_sets.largest(score, 10), {"score": torch.rand(6, 10)}
    return found


ENTRIES = entries()
ARGUMENTS = [(entry, argument) for entry, (_, given) in ENTRIES.items() for argument in given]


class Never:
    """A library that must not be called."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} ran")


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (products, convolution, grouped, densified, native_theta):
        monkeypatch.setattr(module, "lib", Never)
    monkeypatch.setattr(native_sets, "library", Never)


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_fits_runs(entry: str) -> None:
    run, given = ENTRIES[entry]
    run(**{name: tensor.clone() for name, tensor in given.items()})


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("entry, argument", ARGUMENTS)
def test_another_size_is_refused(entry: str, argument: str, by: int) -> None:
    run, given = ENTRIES[entry]
    more = {("largest", "score"), ("assemble", "reservoir"), ("store", "reservoir")}
    if by == 1 and ((entry, argument) in more or (argument == "cols" and "values" not in given)):
        return  # more scores, or more room than is used, are no error
    channels = entry == "conv" and argument == "x"
    wrong = torch.nn.functional.pad(given[argument], (0, 0, 0, by) if channels else (0, by))
    # Values and slots are counted against one another: either may be named.
    named = r"(values|tensor|cols|grad|reservoir)" if argument in ("values", "cols") else rf"({argument}|x|dy|fwd)"
    with pytest.raises(topkast.OperandError, match=rf"{named}: .*expected|{named}: \["):
        run(**{**given, argument: wrong})


def without_memory(tensor: Tensor, kind: str) -> Tensor:
    if kind == "meta":
        return tensor.to("meta")
    if kind == "fake":
        return FakeTensorMode().from_tensor(tensor)
    if kind == "freed":
        freed = tensor.clone()
        freed.untyped_storage().resize_(0)
        return freed
    return DTensor.from_local(tensor, dist.init_device_mesh("cpu", (1,)), [Replicate()])


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("never", "one_rank")
@pytest.mark.parametrize("kind", ["DTensor", "fake", "meta", "freed"])
def test_a_tensor_without_memory_is_refused(kind: str) -> None:
    for entry, argument in ARGUMENTS:
        run, given = ENTRIES[entry]
        if kind == "freed" and (entry, argument) == ("conv_input_grad", "x"):
            continue  # of which only shape and strides count
        if kind in ("meta", "freed") and entry in ("assemble", "store", "follow", "build_index", "largest"):
            continue  # what native code does not take goes to plain PyTorch
        with pytest.raises(topkast.OperandError, match=r"has no memory here|expected"):
            run(**{**given, argument: without_memory(given[argument], kind)})
            raise AssertionError(f"{entry}: {argument}")


@pytest.mark.usefixtures("never")
def test_types_and_contents_that_would_be_misread() -> None:
    run, given = ENTRIES["spmm"]
    for name, kind in (("row_ptr", torch.int32), ("row_fwd", torch.int32), ("cols", torch.int64)):
        with pytest.raises(topkast.OperandError, match=rf"{name}: a tensor of shape .* \({str(kind)[6:]}\), expected"):
            run(**{**given, name: given[name].to(kind)})
    for entry in ("squares", "scale_explored"):
        run, given = ENTRIES[entry]
        with pytest.raises(topkast.OperandError, match=r"values: .* expected float32, contiguous"):
            run(**{**given, "values": given["values"].double()})
    for ends in ([2, 2, 6], [2, 1, 5], [-1, 2, 5]):
        run, given = ENTRIES["grouped_spmm"]
        with pytest.raises(topkast.OperandError, match=r"ends: .*ascend from 0 to at most 5"):
            run(**{**given, "ends": torch.tensor(ends)})
    score, full = torch.rand(3, 10), torch.ones(6, 10, dtype=torch.bool)
    for count in (-1, 11):
        with pytest.raises(topkast.OperandError, match="score"):
            native_sets.largest(score, count)
    with pytest.raises(topkast.OperandError, match=r"bwd: .* at most 59 members, the number of slots, not 60"):
        native_sets.build_index(full, full, 59)
    with pytest.raises(topkast.OperandError, match=r"fwd: .* a set inside bwd"):
        native_sets.build_index(full, ~full, 60)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    "change, named",
    [
        ({"stride": [1, 1]}, "stride"), ({"stride": [0]}, "stride"), ({"padding": [-1]}, "padding"),
        ({"dilation": [0]}, "dilation"), ({"groups": 0}, "groups|x"), ({"groups": 5}, "groups|x"),
        ({"transposed": True}, "x"), ({"padding": [0]}, "dy"), ({"stride": [2]}, "dy"), ({"dilation": [2]}, "dy"),
    ],
)  # fmt: skip
def test_arguments_of_another_convolution_are_refused(change: dict[str, Any], named: str) -> None:
    index, given = weight(IMAGES)
    dy, x, args = torch.randn(2, 24, 7), torch.randn(2, 10, 7), PLAIN._replace(**change)
    with pytest.raises(topkast.OperandError, match=f"^({named}): "):
        convolution.conv_weight_grad(dy, x, index, IMAGES, args)
    with pytest.raises(topkast.OperandError, match=f"^({named}): "):
        convolution.conv_input_grad(dy, x, given["values"], index, IMAGES, args)


@pytest.mark.usefixtures("never")
def test_tiles_of_another_size_are_refused() -> None:
    for wrong in (torch.randn(33, 4), torch.randn(2, 32, 4), torch.randn(32, 4).double()):
        with pytest.raises(topkast.OperandError, match="x: "):
            products.pack(wrong, 32)
    with pytest.raises(topkast.OperandError, match="tiles: "):
        products.unpack(torch.randn(2, 4, 20))


def test_a_subclass_with_memory_of_its_own_is_taken() -> None:
    class Named(torch.Tensor):
        pass

    run, given = ENTRIES["spmm"]
    found = run(**{**given, "x": given["x"].as_subclass(Named), "values": torch.nn.Parameter(given["values"])})
    assert torch.equal(found.as_subclass(Tensor), run(**given))


@pytest.mark.skipif(not triton.available(), reason="Triton is not installed")
@pytest.mark.parametrize("kind", ["size", "meta"])
@pytest.mark.parametrize("module, block", [(triton_products, 16), (single, 1), (transient.TRANSIENT, 1)])
def test_cuda_kernels_check_the_same(module: Any, block: int, kind: str) -> None:
    """Before a kernel is launched; so this needs no GPU."""
    geometry = Geometry((32, 48), (0, 1), 1, (block, block))
    given = {**weight(geometry)[1], "x": torch.randn(5, 48), "dy": torch.randn(5, 32)}

    def call(product: str, **tensors: Tensor) -> None:
        index = Index(*(tensors[name] for name in Index._fields))
        bias = (None,) if product == "spmm" else ()
        getattr(module, product)(*(tensors[name] for name in taken[product]), index, geometry, *bias)

    taken = {"spmm": ("x", "values"), "spmm_t": ("dy", "values"), "sddmm": ("dy", "x")}
    for product, own in taken.items():
        for argument in (*own, "row_ptr", "row_fwd", "cols"):
            if module is transient.TRANSIENT and argument in ("x", "dy"):
                continue  # plain PyTorch's own product
            if kind == "size" and argument == "cols" and product == "sddmm":
                continue  # more slots than are used are no error
            tensor = given[argument]
            wrong = tensor.to("meta") if kind == "meta" else torch.nn.functional.pad(tensor, (0, 1))
            with pytest.raises(topkast.OperandError, match=rf"{argument}|values|x: "):
                call(product, **{**given, argument: wrong})


def test_a_message_says_what_is_expected() -> None:
    run, given = ENTRIES["spmm"]
    with pytest.raises(topkast.OperandError) as caught:
        run(**{**given, "x": torch.randn(5, 11)})
    assert str(caught.value) == "x: a tensor of shape (5, 11) (float32), expected [M, 10]"
    assert isinstance(caught.value, ValueError) and operands.address("x", given["x"]) == given["x"].data_ptr()
