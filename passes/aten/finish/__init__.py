"""Rewrites of a fused graph: which kernel runs, what is recomputed, what stays in tiles, what is left and why."""
