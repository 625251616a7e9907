"""Check that an exported file computes the same results as the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from topkast.runtime.errors import ExportError
from topkast.runtime.onnx.session import Session

from .flatten import Flat

ROUNDINGS = 100
NOISE = 32
DOUBLE_LIMIT = 2_000_000_000  # bytes; a model with more weights gets no float64 copy


@dataclass
class Checked:
    """Shapes of the file's inputs and outputs, the largest error, and the checks that were left out."""

    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    max_error: float | None = None
    notes: list[str] = field(default_factory=list)


def compare(
    flat: Flat,
    path: Path,
    names: list[str],
    tensors: list[Tensor],
    sizes_free: bool,
    verify: bool,
    library: Path | None = None,
    shapes: Sequence[list[list[int]]] = (),
) -> Checked:
    """Run the file and the model on the same inputs: the examples, and random inputs of other sizes.

    The bound for a floating-point output is the larger of two numbers: 100 roundings of the output's largest magnitude,
    and 32 times PyTorch's own error, measured against the same model in float64. ONNX Runtime sums in another order and
    approximates erf and exp by other polynomials. This gives a few times PyTorch's own error, even if the model is
    badly conditioned. A wrong operator or weight gives an error thousands of times larger. Integers must be equal.

    Args:
        flat: the model. Afterwards the model is in float64.
        path: the path of the file.
        names, tensors: the names of the file's inputs, and the tensors of the trace.
        sizes_free: True if dynamic sizes may have any value (the default batch), False if the user set limits.
        verify: if False, the file is only loaded to read its shapes, and nothing is run.
        library: the library of topkast's kernels; the file is run with the library and without it. None: only without.
        shapes: other shapes of the inputs to try. If none are given, the file's dynamic dimensions decide the shapes.

    Raises:
        ExportError: the file does not run, or an output differs from PyTorch's by more than the bound.
    """
    try:
        session = Session(path)
        sessions = [session] if library is None else [session, Session(path, library)]
        checked = Checked(session.inputs, session.outputs)
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot load the exported file ({type(error).__name__}: {error}); where it lacks an operator "
            "in the model's dtype, export the model in float32"
        ) from error
    if not verify:
        return checked
    trials = [tensors]
    expected = [flat.named(*tensors)]
    for drawn in _draws(session, names, tensors, sizes_free, shapes):
        try:
            expected.append(flat.named(*drawn))
            trials.append(drawn)
        except Exception:
            checked.notes.append(
                f"not compared for {[list(t.shape) for t in drawn]}: the model itself does not take it"
            )
    exact = _in_float64(flat, trials)
    checked.max_error = 0.0
    for i, (trial, wanted) in enumerate(zip(trials, expected, strict=True)):
        for one in sessions:
            try:
                given = one.run(dict(zip(names, trial, strict=True)))
            except Exception as error:
                where = _sizes(names, trial)
                raise ExportError(f"ONNX Runtime cannot run the exported file on {where}: {error}") from error
            for j, (name, tensor) in enumerate(wanted.items()):
                error_of, bound = _error(given[j], tensor, exact[i][j] if exact else None)
                checked.max_error = max(checked.max_error, error_of)
                if not error_of <= bound:
                    how, largest = "" if one is session else " with topkast's library", tensor.abs().max().item()
                    raise ExportError(
                        f"the exported file does not agree with PyTorch{how}: output {name!r} is off by "
                        f"{error_of:.3g}, at most {bound:.3g} is rounding (its largest value: {largest:.3g}), "
                        f"on inputs {_sizes(names, trial)}"
                        + ("; torch.export.Dim(name, min=..., max=...) limits a size" if i and shapes else "")
                    )
    return checked


def _draws(
    session: Session, names: list[str], tensors: list[Tensor], sizes_free: bool, given: Sequence[list[list[int]]]
) -> Iterator[list[Tensor]]:
    """Inputs of the given shapes. If no shapes are given: random inputs similar to the examples, once with each dynamic
    dimension one larger, and once with a batch of one."""
    generator = torch.Generator().manual_seed(0)
    for wished in given:
        yield [_part(t, shape, generator) for t, shape in zip(tensors, wished, strict=True)]
    if given:
        return
    shapes = session.inputs
    known = {
        dim: tensor.shape[axis]
        for name, tensor in zip(names, tensors, strict=True)
        for axis, dim in enumerate(shapes.get(name, []))
        if isinstance(dim, str) and dim.isidentifier()
    }
    wanted = [{dim: size + 1 for dim, size in known.items()}]
    if sizes_free and known:
        wanted.append(dict.fromkeys(known, 1))
    for sizes in wanted:
        yield [
            _random(tensor, [sizes.get(str(dim), tensor.shape[axis]) for axis, dim in enumerate(shape)], generator)
            for tensor, shape in (
                (tensor, shapes.get(name, tensor.shape)) for name, tensor in zip(names, tensors, strict=True)
            )
        ]


def _part(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """A part of the example if a part of this shape exists, else random values. A part is preferred, because a few
    random values of a mask could hide everything."""
    if any(size > whole for size, whole in zip(shape, tensor.shape, strict=True)):
        return _random(tensor, shape, generator)
    return tensor[tuple(slice(size) for size in shape)].contiguous()


def _sizes(names: list[str], tensors: list[Tensor]) -> str:
    """The inputs' shapes, in words."""
    return ", ".join(f"{name}{list(t.shape)}" for name, t in zip(names, tensors, strict=True))


def _random(like: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    if like.numel() == 0:
        return like.new_empty(shape)
    if like.is_floating_point() and bool(like.isfinite().all()):
        spread = like.double().std() if like.numel() > 1 else like.double().abs().sum()
        return (torch.randn(shape, generator=generator) * spread + like.double().mean()).to(like.dtype)
    # Random integers stay in the example's range. For flags, and for masks of zeros and -inf, a new value could be
    # meaningless, so the example's own values are drawn.
    if like.dtype == torch.bool or like.is_floating_point():
        return like.reshape(-1)[torch.randint(like.numel(), shape, generator=generator)]
    low, high = int(like.min()), int(like.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(like.dtype)


def _in_float64(flat: Flat, trials: list[list[Tensor]]) -> list[list[Tensor]] | None:
    """The outputs in float64; None if the model does not run in float64 or would need too much memory."""
    if sum(p.numel() * p.element_size() for p in flat.parameters()) > DOUBLE_LIMIT:
        return None
    try:
        flat.double()
        wide = ([t.double() if t.is_floating_point() else t for t in trial] for trial in trials)
        return [list(flat.named(*trial).values()) for trial in wide]
    except Exception:  # the model's code names a dtype, so only the bound by roundings is used
        return None


def _error(given: Tensor, wanted: Tensor, exact: Tensor | None) -> tuple[float, float]:
    """(largest difference, its bound); the difference is infinite if shapes, dtypes or non-finite entries differ."""
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return float("inf"), 0.0
    if wanted.numel() == 0:
        return 0.0, 0.0
    finite = wanted.isfinite()
    if not torch.equal(finite, given.isfinite()) or not torch.equal(
        given[~finite].nan_to_num(), wanted[~finite].nan_to_num()
    ):
        return float("inf"), 0.0
    theirs, ours = given.double()[finite], wanted.double()[finite]
    if ours.numel() == 0:
        return 0.0, 0.0
    error = float((theirs - ours).abs().max())
    if not wanted.is_floating_point():
        return error, 0.0
    relative = min(ROUNDINGS * torch.finfo(wanted.dtype).eps, 0.1)
    noise = float((exact.double()[finite] - ours).abs().max()) if exact is not None else 0.0
    return error, max(relative * float(ours.abs().max()), NOISE * noise)
