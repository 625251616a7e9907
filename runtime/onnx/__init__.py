"""ONNX Runtime with topkast's kernels: the library of operators, sessions, and the providers that run the nodes."""
