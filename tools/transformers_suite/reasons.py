"""Why a test of transformers passes with a dense model and not with a sparse one: (test, first line of its error, why).

Both patterns are globs; a test is written model.Class.test. The first that fits counts. The advice in these reasons is
tried out in ``tests/equality/test_files_transformers.py``.
"""

MISMATCHED = "RuntimeError: You set `ignore_mismatched_sizes` to `False`*"

REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "*.test_from_pretrained_no_checkpoint",
        MISMATCHED,
        "The test gives a sparse model's state dict to from_pretrained, which builds a dense model: give it "
        "topkast.dense_state_dict(model), or convert a model first and call its load_state_dict.",
    ),
    (
        "*.test_correct_missing_keys",
        MISMATCHED,
        "The test saves only the base of a sparse model, as a sparse file, and from_pretrained builds a dense model: "
        "save topkast.densify(model).base_model.",
    ),
    (
        "*.test_init_weights_can_init_buffers",
        "AssertionError: Lists differ: *",
        "The test compares the names of a sparse model's buffers with those of a model on the meta device, which the "
        "plugin leaves dense: a sparse weight adds its index and its reservoir.",
    ),
    (
        "*.test_model_weights_reload_no_missing_tied_weights",
        "AssertionError: Items in the first set but not the second:",
        "The test compares the names that from_pretrained found missing, of a dense model, with the names in the model "
        "that the plugin then made sparse: a sparse weight adds its index and its reservoir.",
    ),
    (
        "t5.*.test_keep_in_fp32_modules",
        "AssertionError: False is not true : *.sparse_state.weight.row_ptr was upcasted but it should NOT be",
        "The test expects float16 or float32 of each entry of a state dict. A sparse state dict also has positions, "
        "which are integers; values and reservoir have the precision of the dense weight.",
    ),
    (
        "*.test_torch_save_load",
        "*CheckpointError: sub of an index in a state dict: *",
        "The test subtracts each entry of a state dict from its copy. The positions in a sparse state dict refuse "
        "arithmetic, so that nobody averages them; they can be compared with torch.equal.",
    ),
)
