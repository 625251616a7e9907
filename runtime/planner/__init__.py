"""Which kernel runs a product fastest: measured once, remembered on disk."""
