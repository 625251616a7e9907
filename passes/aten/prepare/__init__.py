"""Rewrites that bring products with a sparse weight into the forms that the next room fuses."""
