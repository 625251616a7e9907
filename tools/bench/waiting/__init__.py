"""How long a user waits for compilers: five scripts, cold and warm, beside plain ``torch.compile`` of a dense model."""
