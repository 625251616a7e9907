"""How a sparse weight is stored in an ONNX file: one file a format, each with its record ``FORMAT``.

``FORMATS`` is the table of them; ``topkast.export``, ``topkast inspect`` and ``convert`` know formats from it alone.
"""

from . import block, compact, custom, dense, sparse_initializer

AUTO = "auto"  # neither a format nor a precision: asks for the best of each weight
FORMATS = {
    format.name: format
    for format in (custom.FORMAT, block.FORMAT, compact.FORMAT, dense.FORMAT, sparse_initializer.FORMAT)
}
# What "auto" tries, in this order: a format that any runtime runs fast comes before one that needs our library. "dense"
# is faster than dense float32 only with int8.
FASTEST_FIRST = (block.FORMAT, custom.FORMAT, dense.FORMAT)
SMALLEST = compact.FORMAT  # what "auto" takes if nothing is faster
