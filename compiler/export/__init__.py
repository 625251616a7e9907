"""``topkast.export``: write a trained model as an ONNX file; the file is run and compared before it appears.

``program`` traces the model, ``kv_cache`` makes a decoder's cache its inputs and outputs, ``dimensions`` finds the
dimensions that vary, ``parity`` compares the file with the model, ``result`` describes the file.
"""
