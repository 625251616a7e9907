"""The module ``topkast.watch``: figures about a sparse model during training, and ways to log them.

``sparse_figures`` computes them. ``loggers`` brings them to a function of the user's own, to Trainer and to Lightning;
their packages are imported only when they are used.
"""

from .loggers import every_refresh, lightning_callback, trainer
from .sparse_figures import metrics

__all__ = ["every_refresh", "lightning_callback", "metrics", "trainer"]
