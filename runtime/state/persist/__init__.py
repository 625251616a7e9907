"""The forms in which a site is stored: its part of a state dict, a pickle, a deep copy."""
