"""Turn a module into a compiled sparse module: options, selection, conversion, backend, checkpoints, export."""
