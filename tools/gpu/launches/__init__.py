"""How many launches and operators a compiled training step has, counted in the code that Inductor generates for a GPU
that is not there: ``TRITON_INTERPRET=0 python -m topkast.tools.gpu.launches``.
"""
