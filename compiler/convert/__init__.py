"""Convert a module to a sparse module, completely or not at all.

The interface is ``sparsify.sparsify``. ``select`` decides which parameters become sites, ``distribute`` counts their
entries, ``initial`` sets the norm, ``attach`` puts a site in its weight's place, ``undo`` reverts everything after an
error.
"""
