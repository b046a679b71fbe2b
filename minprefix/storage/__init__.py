"""What is read and written: models, prefixes, runs."""
