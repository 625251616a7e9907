"""From a module to a compiled callable: configuration, selection, conversion, backend, export."""
