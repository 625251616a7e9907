"""``python -m topkast.compiler.cli``: the command ``topkast`` without an installation."""

import sys

from .main import main

sys.exit(main())
