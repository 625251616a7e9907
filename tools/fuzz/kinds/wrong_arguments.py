"""Values that are not allowed: each is refused by an error of topkast that names the argument, and nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

import topkast

from .trained import everything, net, same, train, trained

WRONG: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus": -1,
    "large": 10**30,
    "half": 1.5,
    "text": "x",
    "bytes": b"x",
    "empty": [],
    "nested": [[]],
    "dict": {"no such name": 3},
    "object": object(),
    "type": int,
    "complex": 1j,
    "number": 5,
    "tensor": torch.ones(3),
}
ANY = tuple(WRONG)


def but(*allowed: str) -> tuple[str, ...]:
    return tuple(word for word in ANY if word not in allowed)


# Argument of topkast.compile -> the words that are wrong for it.
OPTIONS: dict[str, tuple[str, ...]] = {
    "fwd": ANY,
    "bwd": ANY,
    "block": ANY,
    "balanced": ANY,
    "distribution": ANY,
    "include": ANY,
    "exclude": but("text"),  # a glob that matches nothing
    "refresh_every": but("number", "large"),
    "refresh_growth": but("half", "number", "large"),
    "fwd_start": ANY,
    "fwd_reached_after": ANY,
    "refresh_in_background": ANY,
    "stop_exploring_after": but("number", "large"),
    "explore": ANY,
    "exploration_l2": but("half", "number", "large"),
    "exploration_decay": but("half", "number", "large"),
    "initial": ANY,
    "method": ANY,
    "reservoir": ANY,
    "drop_fraction": ANY,
    "seed": but("number"),
    "min_size": but("number"),
    "init": ANY,
    "device": ANY,
    "mesh": ANY,
    "backend": ANY,
    "fullgraph": ANY,
    "dynamic": ANY,
    "mode": ANY,
    "options": ANY,
    "no_such_argument": ANY,
}
Sparse = tuple[torch.nn.Module, torch.optim.Optimizer]
# Call -> (argument's name, the call with a wrong value, the wrong words)
CALLS: dict[str, tuple[Callable[[Sparse, Any], Any], tuple[str, ...]]] = {
    "step lr": (lambda s, v: topkast.step(s[0], lr=v), but("half", "number", "large")),
    "step model": (lambda s, v: topkast.step(v, lr=0.1), ANY),
    "refresh model": (lambda s, v: topkast.refresh(v), ANY),
    "masks model": (lambda s, v: topkast.masks(v), ANY),
    "report model": (lambda s, v: topkast.report(v), ANY),
    "densify model": (lambda s, v: topkast.densify(v), ANY),
    "save path": (lambda s, v: topkast.save(s[0], v), but("text", "bytes")),
    "save model": (lambda s, v: topkast.save(v, "never"), ANY),
    "save optimizer": (lambda s, v: topkast.save(s[0], "never", v), ANY),
    "load path": (lambda s, v: topkast.load(s[0], v), ANY),
    "load optimizer": (lambda s, v: topkast.load(s[0], "never", v), ANY),
    "dense values": (lambda s, v: topkast.dense_state_dict(s[0], v), ANY),
    "load_dense state_dict": (lambda s, v: topkast.load_dense_state_dict(s[0], v), ANY),
    "load_dense weight": (
        lambda s, v: topkast.load_dense_state_dict(s[0], {**topkast.dense_state_dict(s[0], "all"), "0.weight": v}),
        ANY,
    ),
    "load_dense bias": (
        lambda s, v: topkast.load_dense_state_dict(s[0], {**topkast.dense_state_dict(s[0], "all"), "0.bias": v}),
        ANY,
    ),
    "mask_distance match": (lambda s, v: topkast.topology.mask_distance(s[0], s[0], match=v), ANY),
    "interchangeable model": (lambda s, v: topkast.topology.interchangeable(v), ANY),
    "on_refresh model": (lambda s, v: topkast.on_refresh(v, print), ANY),
    "averaged model": (lambda s, v: topkast.averaged(v), ANY),
    "param_groups model": (lambda s, v: topkast.param_groups(v, 0.1, weight_decay=0.1), ANY),
    "export path": (lambda s, v: topkast.export(s[0], v, torch.ones(2, 12)), but("text", "bytes")),
    "export format": (lambda s, v: topkast.export(s[0], "never", torch.ones(2, 12), format=v), ANY),
    "export precision": (lambda s, v: topkast.export(s[0], "never", torch.ones(2, 12), precision=v), ANY),
    "export opset": (lambda s, v: topkast.export(s[0], "never", torch.ones(2, 12), opset=v), ANY),
    "export library": (lambda s, v: topkast.export(s[0], "never", torch.ones(2, 12), library=v), ANY),
    "export use_cache": (lambda s, v: topkast.export(s[0], "never", torch.ones(2, 12), use_cache=v), ANY),
    "package path": (lambda s, v: topkast.package(s[0], v, torch.ones(2, 12)), ANY),
    "advise block": (lambda s, v: topkast.advise(net(), print, block=v), ANY),
    "advise bwd": (lambda s, v: topkast.advise(net(), print, bwd=v), ANY),
    "advise refresh_every": (lambda s, v: topkast.advise(net(), print, refresh_every=v), ANY),
    "advise steps": (lambda s, v: topkast.advise(net(), print, steps=v), but("number", "large")),
    "advise model": (lambda s, v: topkast.advise(v, print), ANY),
    "estimate model": (lambda s, v: topkast.estimate(v, torch.ones(2, 12)), ANY),
    "onnx.session path": (lambda s, v: topkast.onnx.session(v), but("text", "bytes")),
}
PAIRS = [(f"compile {name}", word) for name, words in OPTIONS.items() for word in words]
PAIRS += [(f"sparsify {name}", word) for name, words in OPTIONS.items() for word in words]
PAIRS += [(name, word) for name, (_, words) in CALLS.items() for word in words]
cases = st.sampled_from(PAIRS)


def check(case: Any) -> str:
    name, word = case
    value = copy.copy(WRONG[word])
    function, _, argument = name.partition(" ")
    if function in ("compile", "sparsify"):
        model = net()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        try:
            getattr(topkast, function)(model, **{"min_size": 1, argument: value})
        except topkast.TopkastError as error:
            assert argument in str(error), f"the error does not name {argument}: {error}"
        else:
            raise AssertionError(f"{argument}={value!r} was accepted")
        assert "_topkast" not in vars(model) and same(dict(model.state_dict()), before), "refused, and changed"
        topkast.compile(model, min_size=1, backend="eager")
        return "refused"
    model, optimizer = trained(2)
    before = everything(model, optimizer)
    try:
        CALLS[name][0]((model, optimizer), value)
    except topkast.TopkastError as error:
        named = argument in str(error) or argument in ("weight", "bias", "path")
        assert named, f"the error does not name {argument}: {error}"
    else:
        raise AssertionError(f"{name}={value!r} was accepted")
    assert same(everything(model, optimizer), before), "refused, and changed"
    train(model, optimizer, 2)
    return "refused"
