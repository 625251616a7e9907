"""From a module to a sparse module: which parameters become sites, and the conversion, whole or not at all.

Hands out ``sparsify.sparsify``. ``select`` decides, ``distribute`` counts, ``initial`` sets the norm, ``attach`` puts a
site in its weight's place, ``undo`` takes everything back after an error.
"""
