"""Rewrites of an exported graph before weights are stored: tidy names, one product a node, recurrences as products."""
