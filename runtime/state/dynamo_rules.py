"""Tell Dynamo which code of topkast it may compile. Dynamo itself is imported only when the first site is made."""

from __future__ import annotations

import functools
from pathlib import Path
from types import CodeType

from topkast import runtime

TRACED = ("state", "training")  # modules read weights through sites; hooks of optimizers can be part of compiled steps
NOT_TRACED = ("guarded_weight", "content.index_check", "find_sites")  # files of the room ``state``


@functools.cache
def set_dynamo_rules(read_weight: CodeType) -> None:
    """Set the rules, once in a process. A second call does nothing.

    Code that computes an operator must not be compiled itself if Dynamo runs a frame of the model in Python. A read of
    a weight outside a graph must not become a graph: each site would have its own graph, and none could fuse.

    Args:
        read_weight: the code of the function that reads a weight outside graphs.
    """
    from torch._dynamo import trace_rules
    from torch._dynamo.eval_frame import skip_code

    for path in sorted(Path(runtime.__path__[0]).iterdir()):
        if path.stem not in ("__init__", "__pycache__", *TRACED):
            trace_rules.add(f"topkast.runtime.{path.stem}")
    for file in NOT_TRACED:
        trace_rules.add(f"topkast.runtime.state.{file}")
    skip_code(read_weight)
