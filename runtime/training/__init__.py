"""Makes an unchanged training loop sparse: hooks of optimizers, exploration penalty and decay, averaged models."""
