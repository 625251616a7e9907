"""From a trained dense model to a sparse one: a sentence encoder is pruned and distilled.

``docstrings`` makes questions and answers of the sources of installed packages, ``distil`` trains, ``loading`` measures
the memory of two ways to load, ``dense_page`` shows what was found. ``python -m topkast.tools.from_dense`` runs
everything.
"""
