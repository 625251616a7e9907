"""Models on the meta device: they are initialised and made sparse module by module.

``rehearse`` finds out how each module gets its values, ``materialise`` does so; ``access`` sees which tensors a piece
of code reads and writes.
"""
