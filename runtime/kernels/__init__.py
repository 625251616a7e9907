"""The candidates for each product, selection and move. No other room imports ``native`` or ``triton``."""
