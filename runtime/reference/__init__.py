"""The specification of every product, selection and move, in plain PyTorch: right on any device, dtype and layout."""
