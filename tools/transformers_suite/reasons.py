"""Why a test of transformers passes with a dense model and not with a sparse one: (test, first line of its error, why).

Both patterns are globs; a test is written model.Class.test. The first that fits counts.
"""

REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "*.test_save_load",
        "RuntimeError: You set `ignore_mismatched_sizes` to `False`*",
        "save_pretrained writes a sparse checkpoint, and from_pretrained builds a plain dense model for it, whose "
        "shapes are others: save topkast.densify(model), or convert first and load the state dict.",
    ),
)
