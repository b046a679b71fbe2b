"""Pairs and requests from files, how a pair becomes tokens, and the shipped model's tiny world."""
