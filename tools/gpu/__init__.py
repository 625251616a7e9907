"""What needs a GPU: ``tools/gpu/gpu.sh`` runs all of it; ``python -m topkast.tools.gpu.tune`` finds tile sizes.

Without a GPU, ``python -m topkast.tools.gpu.predict`` estimates times from the compiled kernels.
"""
