"""Readers of pairs, how a pair becomes tokens, and the tiny world that the shipped model knows."""
