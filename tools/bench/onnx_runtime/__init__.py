"""Benchmarks of files in ONNX Runtime."""
