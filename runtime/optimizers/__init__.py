"""Optimizers are tried out on small tensors, once per class and settings: ``probe`` says what a step does.

Knows parameters and no site.
"""
