"""Capture a model as graphs, and call its compiled code.

``trace`` makes graphs in which parameters have their names. ``parameter_uses`` follows a parameter to the operations
that use the parameter. ``entry`` wraps the calls into a compiled model. ``why_eager`` explains why a step did not run
compiled.
"""
