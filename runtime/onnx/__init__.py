"""From an exported program to a file, and from a file to results in ONNX Runtime."""
