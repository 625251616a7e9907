"""``topkast.export``: from a trained model to an ONNX file that was run and compared before it is handed out.

``program`` traces, ``axes`` and ``sizes`` read which dimensions vary, ``parity`` compares, ``result`` says what was
written.
"""
