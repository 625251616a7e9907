"""On the ONNX graph: ``writer`` makes a file of an exported program, ``convert`` stores its weights in a format.

``formats`` holds one writer a format, ``shrink`` takes out units that are dead.
"""
