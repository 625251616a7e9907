"""Tests of topkast, in the tree of the package; never part of the wheel."""
