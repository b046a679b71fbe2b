"""Prefix-tuning and its rivals on the same data with the same budget.

entrants    which method takes part, with which options and learning rates
cells       one training of one method, and its scores
sweep       all of them, over workers; what is finished stays finished
table       what they come to: a row for each method
"""
