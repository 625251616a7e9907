"""Models and graphs that tests share."""
