"""What a site leaves behind: its part of a state dict, a pickle, a deep copy."""
