"""The operators ``topkast::*``: schemas, fakes, gradients; what a module reads in eager mode."""
