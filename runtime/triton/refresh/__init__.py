"""A refresh on the GPU: choose the sets, assemble θ and store it again, without waiting for the GPU."""
