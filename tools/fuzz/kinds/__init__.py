"""The kinds of use that are tried, one a file.

A kind has ``cases``, a strategy of hypothesis for plain Python values, and ``check(case)``, which raises AssertionError
if something does not hold. Any other exception is a raw error of topkast. ``check`` may return a word to count by.
"""
