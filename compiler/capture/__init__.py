"""A model as graphs, and the ways into its compiled code.

``trace`` makes graphs in which parameters are known by name; ``parameter_uses`` follows a parameter to the operations
that use it. ``entry`` wraps the calls into a compiled model; ``why_eager`` says why a step did not run compiled.
"""
