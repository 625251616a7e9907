"""Try a built wheel where there is nothing else: ``python -m topkast.tools.release PYTHON``."""
