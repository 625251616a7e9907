"""How a sparse weight is stored in an ONNX file: one writer a format, and ``choose_format`` for "auto"."""
