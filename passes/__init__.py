"""Graph rewrites, one a file, named by a verb. Each room holds its own pipeline.

``dynamo`` works on Dynamo's graph, ``aten`` on AOTAutograd's joint graph, ``onnx`` on the ONNX graph. To import one of
them imports none of the others: training needs no onnx.
"""
