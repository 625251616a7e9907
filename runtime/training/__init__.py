"""What makes an unchanged training loop a sparse one: hooks of optimizers, their probe, the exploration penalty."""
