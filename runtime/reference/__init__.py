"""The specification of every product, selection and move, in plain PyTorch: correct for any device, dtype and
layout."""
