"""`python -m tools.bench`: this project and its peers on the same work, in fresh processes that
take turns.

work      shapes, batches, prompts, sizes, and the jobs that a command consists of
gpu       the same for a GPU
ours      how this project does a job
peers     how PyTorch does it: PEFT, and our own algorithm by hand
agree     whether a peer computes the same, before it is timed
device    waiting for a GPU; its memory, and its launches
worker    the process that does one job
run       one process after the other; their answers become the record
machine   a description of the machine; the memory of a process
summary   from the record to medians, ratios, fits and verdicts; the table of targets
report    tables for a terminal and for BENCHMARKS.md
pictures  the same as pictures
command   the plan, the progress
__main__  the command line
"""
