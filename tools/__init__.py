"""What people run from a clone: ``python -m topkast.tools.NAME``. Never part of the wheel."""
