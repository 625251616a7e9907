"""The report's facts about the backend: which backend really runs, and what ran eagerly instead."""

from __future__ import annotations

from topkast.compiler.capture.cpp_compiler import missed_compiler
from topkast.runtime.state.model import Record
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.training.eager_steps import gradients


def real_backend(record: Record, sites: dict[str, SiteModule]) -> str:
    """The backend that a model was compiled with, or the backend that replaces it."""
    on_cpu = any(site.original.device.type == "cpu" for site in sites.values())
    if record.backend == "inductor" and on_cpu and missed_compiler():
        return "aot_eager (no C++ compiler for inductor)"
    return record.backend


def eager_facts(record: Record, sites: dict[str, SiteModule]) -> list[str]:
    """Sentences about the parts of a compiled model that trained eagerly, with the reasons."""
    watch = record.watch
    if watch is None:
        return []
    if watch.warning is not None:
        return [watch.warning]
    counted = {name: gradients(site) for name, site in sites.items()}
    names = [name for name, (eager, compiled) in counted.items() if eager and not compiled]
    if not names:
        return []
    return [
        f"compiled with backend={record.backend!r}, but trained eagerly so far: {', '.join(names)}; their modules are "
        "called where Dynamo leaves code to Python; TORCH_LOGS='graph_breaks,recompiles' shows where"
    ]
