"""What runs: operators, reference kernels, layouts, the state of each site and its refresh. Knows no graph."""
