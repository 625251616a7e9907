"""Parts of the pages in docs/ that are made from the code: tables of options and formats, graphs of a small model."""
