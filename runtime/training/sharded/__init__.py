"""Training on several devices: every rank chooses the same sets. Ways that would not do this are refused."""
