"""View a decoder of transformers as a function of tensors: the keys and values of its cache go in and come out.

Names and axes are those of optimum's exports, so programs that run optimum's files also run these.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ExportError

from .dimensions.sizes import Sizes
from .flatten import Inputs, Slot, flatten_outputs
from .program import first_line

ARGUMENTS = ("cache", "past_key_values")  # the cache's argument and output, in new and old versions of transformers
TAKEN = ("input_ids", "attention_mask", "position_ids")
LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {NEW}"
SHORTEST = 5  # tokens of an example: at least 3 in the cache and 2 new ones
SAME = 1e-3  # of the largest logit; a cache that is wrong changes logits by far more, rounding by far less


class CachedInputs(Inputs):
    """Example inputs of a decoder, split into tokens that are in the cache and tokens that are new.

    The model runs on the first tokens, so the example's keys and values are the model's own. Layers with a sliding
    window get a cache of all tokens, because the model's mask hides those outside the window.

    Args:
        model: a decoder of transformers, such as ``GPT2LMHeadModel``.
        example_inputs: ``input_ids`` [sequences, tokens], and if wanted ``attention_mask`` and ``position_ids`` of the
            same shape. A single sequence, and fewer than five tokens, are repeated.

    Raises:
        ExportError: the model keeps no key-value cache, or a cache of another kind, or the inputs are others.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        parameters = inspect.signature(model.forward).parameters
        argument = next((name for name in ARGUMENTS if name in parameters), None)
        if argument is None or "input_ids" not in parameters:
            raise _refused(f"forward of {type(model).__name__} takes {', '.join(map(repr, parameters))}")
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise _refused(f"{type(model).__name__} has an encoder and a decoder")
        super().__init__(model, example_inputs)
        given = self._given()
        tokens = _prepared(given, [name for name in TAKEN if name in parameters])
        past = tokens["input_ids"].shape[1] // 2 + 1
        first = {name: tensor[:, :past] for name, tensor in tokens.items()}
        rest = {name: tensor if name == "attention_mask" else tensor[:, past:] for name, tensor in tokens.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the model about its arguments
            try:
                own = getattr(model(**first, use_cache=True), argument, None)
            except Exception as error:
                raise ExportError(f"example_inputs: the model does not run on them: {first_line(error)}") from error
            self._argument, self._kind = argument, _kind(model, own)
            cache = self._kind()
            model(**first, **{argument: cache}, use_cache=True)
            layers = {f"past_key_values.{i}": layer for i, layer in enumerate(cache.layers)}
            pairs = [{f"{name}.key": layer.keys, f"{name}.value": layer.values} for name, layer in layers.items()]
            # Copies, because torch.export fails for tensors that are parts of others.
            named = {name: t.clone() for part in (rest, *pairs) for name, t in part.items()}
            self.names, self.tensors = list(named), list(named.values())
            self._new = len(rest)
            self._check(model, tokens, past)
        self._sizes = {BATCH: len(rest["input_ids"]), NEW: rest["input_ids"].shape[1], PAST: past}
        # Most runs of the file compute one token of each sequence.
        self.usual = {BATCH: len(given["input_ids"]), NEW: 1}

    def call(self, model: Any, tensors: Any) -> Any:
        """Call ``model`` with a cache of these keys and values; its tensors and the grown cache, by name."""
        new, past = tensors[: self._new], tensors[self._new :]
        cache = self._kind()
        for i, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(key, value, i)  # makes the layer
            cache.layers[i].keys, cache.layers[i].values = key, value  # without the join with an empty tensor
        given = dict(zip(self.names, new, strict=False)) | {self._argument: cache}
        outputs = flatten_outputs(model(**given, use_cache=True))
        for i, layer in enumerate(cache.layers):
            outputs |= {f"present.{i}.key": layer.keys, f"present.{i}.value": layer.values}
        return outputs

    def given(self) -> dict[str, Any]:
        return {name: Slot(i, tensor) for i, (name, tensor) in enumerate(zip(self.names, self.tensors, strict=True))}

    @property
    def dynamic_shapes(self) -> dict[str, dict[int, str]]:
        """The axes that vary: sequences, new tokens and tokens in the cache."""
        tokens, total, kept = {0: BATCH, 1: NEW}, {0: BATCH, 1: "total"}, {0: BATCH, 2: PAST}
        axes = dict.fromkeys(TAKEN, tokens) | {"attention_mask": total}
        return {name: axes.get(name, kept) for name in self.names}

    def finish(self, sizes: Sizes) -> None:
        """Name the mask's second axis as a sum, and try the sizes at which a cache can go wrong: no token in it, one
        token, one new token, one sequence, and more of all than in the example."""
        for name, axes in zip(self.names, sizes.names, strict=True):
            if name == "attention_mask":
                axes[1] = TOTAL
        batch, new, past = self._sizes.values()
        tried = [(batch, new, 0), (1, 1, 0), (batch, 1, 1), (1, new, 1), (1, 1, past), (batch + 1, new + 1, past + 2)]
        sizes.trials = [self._shapes(*values) for values in tried]

    def _shapes(self, batch: int, new: int, past: int) -> list[list[int]]:
        """The shapes of all tensors."""
        values = {BATCH: batch, NEW: new, PAST: past, "total": past + new}
        axes = [self.dynamic_shapes[name] for name in self.names]
        return [
            [values[named[axis]] if axis in named else size for axis, size in enumerate(tensor.shape)]
            for tensor, named in zip(self.tensors, axes, strict=True)
        ]

    def _given(self) -> dict[str, Tensor]:
        """The tensors of the user's examples by name; arguments that are None are left out."""
        given = {name: value for name, value in super().given().items() if value is not None}
        others = [name for name, value in given.items() if name not in TAKEN or not isinstance(value, Slot)]
        if others or "input_ids" not in given:
            raise ExportError(
                f"example_inputs: {', '.join(map(repr, given))}; with use_cache=True they must be the tensors "
                "'input_ids' and, if wanted, 'attention_mask' and 'position_ids'"
            )
        return {name: value.tensor for name, value in given.items()}

    def _check(self, model: nn.Module, tokens: dict[str, Tensor], past: int) -> None:
        """Compare the new tokens' outputs with those of a run without a cache."""
        whole = flatten_outputs(model(**tokens, use_cache=False))
        name, given = next(iter(self.call(model, self.tensors).items()))
        wanted = whole[name][:, past:]
        difference, largest = float((given - wanted).abs().max()), float(wanted.abs().max())
        if not difference <= SAME * largest:
            raise _refused(
                f"{name!r} of {type(model).__name__} with a cache of {past} tokens differs by {difference:.3g} from a "
                f"run without a cache (its largest value: {largest:.3g})"
            )


def _prepared(given: dict[str, Tensor], taken: list[str]) -> dict[str, Tensor]:
    """Every input that the model takes [batch, length], with at least two sequences and five tokens.

    A mask that is not given leaves out the first token of the last sequence, because a mask of ones could hide errors.
    """
    ids = given["input_ids"]
    if ids.dim() != 2 or not ids.numel():
        raise ExportError(f"example_inputs: 'input_ids' is {list(ids.shape)}, must be [sequences, tokens]")
    for name, tensor in given.items():
        if tensor.shape != ids.shape:
            raise ExportError(
                f"example_inputs: {name!r} is {list(tensor.shape)}, must have the shape of 'input_ids' "
                f"{list(ids.shape)}"
            )
    repeats = 2 if len(ids) == 1 else 1, -(-SHORTEST // ids.shape[1])
    if max(repeats) > 1:
        given = {name: tensor.repeat(repeats) for name, tensor in given.items() if name != "position_ids"}
    ids = given["input_ids"]
    mask = given.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(ids)
        mask[-1, 0] = 0
    positions = given.get("position_ids")
    if positions is None:
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
    every = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: every[name] for name in taken}


def _kind(model: nn.Module, cache: Any) -> Any:
    """The class of a cache that keeps keys and values as plain tensors."""
    if type(cache).__name__ != "DynamicCache" or not hasattr(cache, "layers"):
        raise _refused(f"{type(model).__name__} returned {'none' if cache is None else f'a {type(cache).__name__}'}")
    kinds = dict.fromkeys(type(layer).__name__ for layer in cache.layers)
    if set(kinds) - set(LAYERS):
        raise _refused(f"the cache of {type(model).__name__} has layers of the kind {', '.join(kinds)}")
    return type(cache)


def _refused(found: str) -> ExportError:
    return ExportError(
        f"use_cache=True: {found}. The model must be a decoder of transformers (4.54 or later), such as "
        "GPT2LMHeadModel or LlamaForCausalLM: it takes 'input_ids' and 'cache' (or 'past_key_values'), and returns a "
        "DynamicCache with layers of keys and values. Leave use_cache out to export the model without its cache"
    )
