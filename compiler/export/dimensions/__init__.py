"""The dimensions of a file that may vary: ``axes`` reads what the user asks for, ``sizes`` finds names and limits."""
