"""What is kept of a sparse weight, and how it changes: the site, its refresh, its reservoir, its copies and files.

``site`` is one sparse weight, ``model`` finds all of a model, ``refresh`` chooses sets again.
"""
