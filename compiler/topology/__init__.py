"""``topkast.topology``: how far the sets of two models are apart, and which neurons may be permuted.

``interchangeable`` finds the classes of neurons, ``mask_distance`` compares sets, with ``match=True`` after the
permutation for the largest overlap.
"""

from .distance import MaskDistance, mask_distance
from .interchangeable import Interchangeable, interchangeable

__all__ = ["Interchangeable", "MaskDistance", "interchangeable", "mask_distance"]
