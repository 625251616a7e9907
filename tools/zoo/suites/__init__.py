"""The lists of models, one file for each package that they come from."""
