"""``topkast.report``: facts about a converted model, counted from its tensors; its costs; the table of both."""
