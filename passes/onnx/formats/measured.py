"""What the formats that save time share of what was measured.

Measured by ``topkast.tools.bench onnx`` on layers of 4096 x 4096 and 1024 x 4096 at 1 to 256 rows of x, and on smaller
layers: a limit is the densest weight that was measured and beat dense in the worst case (a fifth and a tenth, with room
for rounding).
"""

from __future__ import annotations

MANY_ROWS = 16  # rows of x from which the kernels' vectors are full
# Multiplications of the dense product, for x of many rows and of few: with less, what a node costs beside them decides.
LEAST_WORK = {True: 2**18, False: 2**20}


def limit(limits: dict[int, float], size: int) -> float:
    """The density up to which a product is faster than dense, for a size by the least size of each limit."""
    return max((density for least, density in limits.items() if least <= size), default=0.0)
