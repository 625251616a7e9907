"""Training on several devices: every rank chooses the same sets; other ways are refused."""
