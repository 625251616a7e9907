"""Compile the Triton kernels for a GPU that is not there, and read what the compiler made of them.

    python -m topkast.tools.gpu.compiled 90          some of the kernels, for sm_90; JSON
    python -m topkast.tools.gpu.compiled 90 all      every row of the table of tile sizes

Needs a process without TRITON_INTERPRET: the interpreter cannot be switched off where it is on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Triton's about a default of a later version
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

from topkast.runtime.triton import configs, move_kernels, sddmm_kernels, single_kernels, spmm_kernels
from topkast.runtime.triton.products import WGMMA_ROWS
from topkast.runtime.triton.refresh import sets_kernels

WIDE = r"cp\.async\.c[ag]\S* \[[^]]*\], \[[^]]*\], 0x10"
POINTERS = {"bf16": "half", "fp32": "single"}


def facts(kernel: Any) -> dict[str, Any]:
    """What the compiled kernel says of itself.

    Returns:
        registers of a thread, and bytes of its stack, where spilled registers go; shared memory in bytes; threads;
        how many instructions of tensor cores (wgmma, mma) and copies of 16 bytes there are; and ``loop``: the bytes
        that one turn of the sum's loop reads, and its floating-point operations. Without such a loop both are 0.
    """
    ptx, threads = kernel.asm["ptx"], 32 * kernel.metadata.num_warps
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "stack": found["STACK"] + found["LOCAL"],
        "shared": kernel.metadata.shared,
        "threads": threads,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wide copies": len(re.findall(WIDE, ptx)),
        "loop": dict(zip(("bytes", "operations"), loop(ptx, threads), strict=True)),
    }


def loop(ptx: str, threads: int) -> tuple[int, int]:
    """Bytes read from global memory and floating-point operations in one turn of the loop that has the most of them."""
    found = []
    for label, body in re.findall(r"^(\$L__BB\d+_\d+):(.*?)bra(?:\.uni)? \s*\1;", ptx, re.DOTALL | re.MULTILINE):
        inner = body.rpartition(f"{label}:")[2] or body
        # Copies of 16 bytes bring operands. Smaller ones bring the index, the same for all threads.
        wide = 16 * len(re.findall(WIDE, inner))
        loads = sum(int(v or 1) * int(b) // 8 for v, b in re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+) \{", inner))
        read = wide or loads
        operations = 0
        for op, m, n, k in re.findall(r"(wgmma\.mma_async|\bmma\.sync)\S*m(\d+)n(\d+)k(\d+)", inner):
            operations += 2 * int(m) * int(n) * int(k) * threads // (128 if op.startswith("wgmma") else 32)
        operations = operations or 2 * threads * len(re.findall(r"\bfma\.rn\.f32", inner))
        found.append((read * threads, operations))
    return max(found, key=lambda one: one[1], default=(0, 0))


def build(kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
    """Compile; pointers and numbers that are not named in ``types`` are int32 and divisible by 16, as those of aligned
    matrices are."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def product(name: str, side: int, kind: str, rows: str, capability: int, swap: bool | None = None) -> tuple[Any, int]:
    """A product on square blocks that divide the matrix, as the table says, and the bytes of one step.

    Args:
        swap: whether sddmm computes its product transposed; None: as products.py decides.
    """
    listed = configs.table()[f"sm_{capability}"][name][POINTERS[kind]][str(side)][rows]
    chosen, pointer, precision = configs.Config(*listed), f"*{kind}", "tf32" if kind == "fp32" else "ieee"
    constants = {"PRECISION": precision, "WIDEN": False, "TILE": chosen.tile, "DEPTH": chosen.depth, "x_k": 1}
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
    step = (chosen.tile + side) * chosen.depth * (4 if kind == "fp32" else 2)
    if name == "sddmm":
        types = dict.fromkeys(("dy", "x", "grad"), pointer) | {"row_ptr": "*i64", "cols": "*u16"}
        constants |= {"R": side, "C": side, "HEIGHT": side, "EXACT": True, "EVEN": True, "dy_n": 1, "PARTIAL": False}
        constants["SWAP"] = side < WGMMA_ROWS <= chosen.tile and kind != "fp32" if swap is None else swap
        return build(sddmm_kernels.sddmm_kernel, capability, types, constants, **options), step
    transposed = name == "spmm_t"
    types = dict.fromkeys(("x", "values", "bias", "y"), pointer) | dict.fromkeys(("begins", "ends"), "*i64")
    types |= dict.fromkeys(("slot_of", "block_of"), "*i32" if transposed else "*u16")
    constants |= {"INNER": side, "OUTER": side, "WIDTH": side, "TRANSPOSED": transposed, "GROUP": chosen.group}
    constants |= {"EXACT": side % chosen.depth == 0, "HAS_BIAS": not transposed, "bias_n": 1}
    constants |= {"ACTIVATION": "" if transposed else "gelu"}
    return build(spmm_kernels.spmm_kernel, capability, types, constants, **options), step


def others(capability: int) -> dict[str, tuple[Any, int]]:
    """The kernels beside the products."""
    index = {"row_ptr": "*i64", "row_fwd": "*i64", "cols": "*u16", "begins": "*i64", "ends": "*i64"}
    digits = {"score": "*fp32", "state": "*i32", "counts": "*i32", "mask": "*u8", "fwd": "*u8", "bwd": "*u8"}
    lists = {"slot_of": "*i32", "row_of": "*i32", "compact": "*bf16", "dense": "*bf16"}
    types = index | digits | lists
    wanted: list[tuple[Any, dict[str, Any]]] = [
        (spmm_kernels.transpose_kernel, {"STEPS": 7, "BLOCK": 256, "PLACED": False, "FILL": True}),
        (move_kernels.move_kernel, {"R": 1, "C": 1, "GATHER": True, "SIZE": 1024, "stride_k": 1}),
        (move_kernels.move_kernel, {"R": 16, "C": 1, "GATHER": False, "SIZE": 1024, "stride_k": 1}),
        (sets_kernels.histogram_kernel, {"WIDE": False, "SHIFT": 23, "BITS": 8, "SIZE": 4096}),
        (sets_kernels.digit_kernel, {"SHIFT": 0, "BINS": 128}),
        (sets_kernels.mask_kernel, {"WIDE": False, "SHIFT": 0, "BINS": 128, "PARTS": 1024, "SIZE": 4096}),
        (sets_kernels.index_kernel, {"SIZE": 1024}),
    ]
    built = {f"{k.__name__} {i}": (build(k, capability, types, given), 0) for i, (k, given) in enumerate(wanted)}
    for pointer in ("*bf16", "*fp32"):
        built |= {f"{name} {pointer}": (kernel, 0) for name, kernel in single(pointer, capability).items()}
    return built


def single(pointer: str, capability: int) -> dict[str, Any]:
    """The products on single weights: rows of the index as it lies, columns as a sort gives them."""
    types = dict.fromkeys(("x", "dy", "values", "bias", "y", "grad"), pointer)
    types |= dict.fromkeys(("begins", "ends", "slot_of", "row_of", "column_of"), "*i64") | {"cols": "*u16"}
    kernel, sizes = single_kernels.single_spmm_kernel, {"ROWS": 16, "TILE": 128}
    forward = {"TRANSPOSED": False, "HAS_BIAS": True, "ACTIVATION": "gelu_tanh", "bias_n": 1, **sizes}
    backward = {"TRANSPOSED": True, "HAS_BIAS": False, "ACTIVATION": "", "bias_n": 0, **sizes}
    at_b = {"SLOTS": 16, "DEPTH": 128}
    return {
        "single_spmm": build(kernel, capability, types | {"column_of": "*u16", "slot_of": "*u16"}, forward),
        "single_spmm_t": build(kernel, capability, types, backward),
        "single_sddmm": build(single_kernels.single_sddmm_kernel, capability, types, at_b),
    }


def main(capability: int, everything: bool) -> dict[str, dict[str, Any]]:
    sides = configs.SIDES if everything else (16, 128)
    kinds = POINTERS if everything else ("bf16",)
    built = others(capability) | {
        f"{name} {side} {kind} {rows}": product(name, side, kind, rows, capability)
        for name in configs.PRODUCTS
        for side in sides
        for kind in kinds
        for rows in (configs.ROWS if everything else ("large",))
    }
    return {name: facts(kernel) | {"step": step} for name, (kernel, step) in built.items()}


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1]), "all" in sys.argv), sys.stdout)
