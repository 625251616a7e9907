"""The code that runs: operators, reference kernels, layouts, the state of each site and its refresh. It has no
graphs."""
