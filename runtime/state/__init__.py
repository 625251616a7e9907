"""The state of a sparse weight and its changes: the site, its refresh, its reservoir, its copies and files.

``site`` is one sparse weight, ``model`` finds all sites of a model, ``refresh`` chooses the sets again.
"""
