"""Models on the meta device: they are initialised and made sparse module by module.

``rehearse`` finds out how each module gets its values, ``materialise`` gives the module its values, and ``access``
observes which tensors a piece of code reads and writes.
"""
