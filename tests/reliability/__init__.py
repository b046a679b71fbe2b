"""Long runs that try to lose or break something, each a command that prints its figures:

    python -m tests.reliability.crash      kills, at random moments
    python -m tests.reliability.disk       a disk that fills up
    python -m tests.reliability.fuzz       damaged input for every reader

`--write` puts the figures, with date and versions, into RELIABILITY.md. pytest collects nothing in
here.
"""
