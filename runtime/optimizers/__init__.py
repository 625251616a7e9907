"""Try out optimizers on small tensors, once per class and settings: ``probe`` reports how a step behaves.

This room uses parameters, but no sites.
"""
