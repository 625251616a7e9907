"""``topkast.report``: facts of a converted model, counted from its tensors; what it costs; the table."""
