"""Find the kernel that runs a product fastest: measured once, remembered on disk."""
