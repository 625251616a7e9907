"""What needs a GPU: ``tools/gpu/gpu.sh`` runs all of it; ``python -m topkast.tools.gpu.tune`` finds tile sizes."""
