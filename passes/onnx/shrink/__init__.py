"""Take units out of an ONNX graph that never depend on the input, or that nothing reads."""
