"""Many trained prefixes: store, combine, compare, verify."""
