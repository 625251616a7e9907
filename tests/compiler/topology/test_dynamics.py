"""The recorder of mask dynamics against the dense masks, and the tool that plots it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import topkast
from topkast.tests.support.truth.builders import CASES


def _share(part: int, whole: int) -> float:
    return part / whole


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("explore", ["topk", "random"])
def test_it_records_each_refresh_as_the_masks_say(backend: str, explore: str) -> None:
    case = CASES["mlp"]
    model = topkast.compile(
        case.model(), fwd=0.8, bwd=0.5, refresh_every=3, min_size=500, explore=explore, seed=0, backend=backend
    )
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # another model's optimizer makes no record
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    history = [topkast.masks(model)]
    with topkast.Dynamics(model) as dynamics:
        for step, (inputs, target) in enumerate(case.batches(11)):
            loss = case.loss(model(*inputs), target)
            if step and step % 3 == 0:
                history.append(topkast.masks(model))
            loss.backward()
            optimizer.step()
            other.step()
            optimizer.zero_grad()
    optimizer.step()
    assert [moved.step for moved in dynamics.total] == [3, 6, 9]
    assert list(dynamics.layers) == list(history[0])
    for i, (before, now) in enumerate(itertools.pairwise(history)):
        sums = torch.zeros(10, dtype=torch.int64)
        for name, sets in now.items():
            counts: list[int] = []
            for k, mask in enumerate(sets):
                first, last = history[0][name][k], before[name][k]
                counts += [int((mask & ~last).sum()), int(mask.sum())]
                counts += [int((mask ^ first).sum()), int(mask.sum() + first.sum())]
            ever = torch.stack([past[name][0] for past in history[: i + 2]]).any(0)
            counts += [int(ever.sum()), ever.numel()]
            seen = dynamics.layers[name][i]
            values = [seen.new_a, seen.from_first_a, seen.new_b, seen.from_first_b, seen.ever_active]
            assert values == [_share(*pair) for pair in zip(counts[::2], counts[1::2], strict=True)]
            sums += torch.tensor(counts)
        assert dynamics.total[i].new_a == _share(int(sums[0]), int(sums[1]))
        assert dynamics.total[i].ever_active == _share(int(sums[8]), int(sums[9]))
    assert dynamics.total[-1].new_a > 0
    distance = topkast.topology.mask_distance(history[0], model)
    assert distance.forward == dynamics.total[-1].from_first_a
    assert distance.backward == dynamics.total[-1].from_first_b
    assert json.loads(json.dumps(dynamics.to_dict()))["total"][0]["step"] == 3


def test_by_hand_without_an_optimizer() -> None:
    model = topkast.sparsify(CASES["mlp"].model(), block=(2, 3), min_size=500)
    dynamics = topkast.Dynamics(model)
    theta = topkast.dense_state_dict(model, "all")
    dynamics.observe()
    assert dynamics.total[0].new_a == dynamics.total[0].from_first_b == 0
    topkast.load_dense_state_dict(model, {**theta, "0.weight": theta["0.weight"].flip(0)})
    dynamics.observe()
    assert dynamics.layers["0.weight"][1].new_a > 0 == dynamics.layers["2.weight"][1].new_a


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(topkast.ModelError, match="not converted"):
        topkast.Dynamics(torch.nn.Linear(2, 2))


@pytest.mark.long
def test_the_tool_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from topkast.tools.study import mask_dynamics

    size = ["--model", "gpt2-nano", "--steps", "5", "--refresh-every", "2", "--batch", "2", "--length", "16"]
    assert mask_dynamics.main([*size, "--backend", "eager", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "dynamics.json").read_text())
    assert [moved["step"] for moved in found["seeds"]["0"]["total"]] == [2, 4]
    apart = json.loads((tmp_path / "between_seeds.json").read_text())["between seeds"]
    for end in ("start", "end"):
        assert apart[end]["matched"]["forward"] <= apart[end]["as they are"]["forward"]
        assert apart[end]["shuffled, matched"]["forward"] <= apart[end]["shuffled"]["forward"]
    assert "between seeds" in capsys.readouterr().out
