"""Files of more than 2 GB, tried for real: ``python -m topkast.tools.large_file``."""
