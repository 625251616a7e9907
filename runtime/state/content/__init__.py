"""The content of a site: its parts, its reservoir, its sets, its optimizer state. Knows no site."""
