"""Rewrites that make sparse products of dense ones: ``spmm``, ``spmm_t``, ``sddmm`` and their convolutions."""
