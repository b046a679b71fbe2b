"""`python -m tools.bench`: this project and its peers on the same work, in fresh processes that
take turns.

work      what is done: shapes, batches, prompts, sizes, and the jobs that a command consists of
gpu       the same for a GPU
ours      how this project does a job
peers     how PyTorch does it: PEFT, and our own algorithm by hand
agree     whether a peer computes the same, asked before it is timed
device    what a clock must wait for; the memory of a GPU, and its launches
worker    the process that does one job
run       one process after the other; what they answered becomes the record
machine   what it ran on; the memory of a process
summary   from the record to medians, ratios, fits and verdicts; the table of targets
report    tables for a terminal and for BENCHMARKS.md
pictures  the same as pictures
command   the plan, the progress
__main__  the command line
"""
