"""topkast.tools.bench.scale: its counts against sums by hand, and against what real processes send."""

from __future__ import annotations

import pytest

from topkast.tools.bench.scale.counted_decoder import Size
from topkast.tools.bench.scale.scale_table import SPARSE, computed
from topkast.tools.bench.scale.sent_bytes import measured

SIZE = Size(dim=80, layers=3, heads=4, keys=4, inner=240, vocab=40)
BLOCK = 4 * 80 * 80 + 3 * 80 * 240  # weights of the linear layers of a block
REST = 2 * 40 * 80 + 80 + 3 * 2 * 80  # embedding, head and norms


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("ranks", [2, 4])
def test_counts_are_sums_by_hand(ranks: int) -> None:
    dense, sparse = computed(SIZE, ranks, None), computed(SIZE, ranks, SPARSE)
    host = computed(SIZE, ranks, SPARSE | {"reservoir": "host"})
    every, kept = 3 * BLOCK + REST, 3 * BLOCK // 5 + REST
    assert dense["held"] == {"values": 4 * every // ranks, "gradient": 4 * every // ranks,
                             "optimizer": 8 * every // ranks}  # fmt: skip
    rows = 3 * (5 * 80 + 2 * 240)
    index = 2 * 3 * BLOCK // 5 // ranks + 8 * (2 * rows + 3 * 7)
    marks = rows * 80 // 8 + 3 * 80 * (240 - 80) // 8
    assert sparse["held"]["values"] == 4 * kept // ranks
    assert sparse["held"]["index"] == index
    assert sparse["held"]["reservoir"] == (4 * 3 * BLOCK * 4 // 5 + marks) // ranks
    assert host["held"]["host memory"] == sparse["held"]["reservoir"]
    assert host["device"] == sparse["device"] - sparse["held"]["reservoir"]
    # bf16 gathered twice in a block and once at the root, fp32 added once.
    in_blocks, root = 3 * (BLOCK + 2 * 80), 2 * 40 * 80 + 80
    assert dense["step"] == (ranks - 1) * (in_blocks * (2 * 2 + 4) + root * (2 + 4)) // ranks
    less = 3 * (BLOCK - BLOCK // 5) * (2 * 2 + 4) - 3 * BLOCK // 5 * 2 * 2
    decay = 3 * (2 * (ranks - 1) * 8 * 7 // ranks)
    assert sparse["step"] == dense["step"] - (ranks - 1) * less // ranks + decay
    assert sparse["refresh"] == 0


@pytest.mark.long
def test_processes_send_what_is_computed() -> None:
    for rank in measured(2, SPARSE | {"balanced": False}, bf16=False):
        assert rank["refreshes"] == 1
        assert rank["step"] == pytest.approx(rank["step computed"], rel=0.05)
        assert rank["refresh"] == pytest.approx(rank["refresh computed"], rel=0.05)
        assert rank["optimizer"] == rank["held computed"]["optimizer"]
