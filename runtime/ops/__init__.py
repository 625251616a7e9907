"""The operators ``topkast::*``: schemas, fakes, gradients; and the read of a weight in eager mode."""
