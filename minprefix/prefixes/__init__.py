"""What one does with trained prefixes: keep many, compare, verify, mix, take elsewhere."""
