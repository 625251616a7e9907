"""Why a test of transformers passes with a dense model and not with a sparse one: (test, first line of its error, why).

Both patterns are globs; a test is written model.Class.test. The first that fits counts.
"""

REASONS: tuple[tuple[str, str, str], ...] = ()
