"""What survives a kill, a full disk and two processes at the same time; nothing here knows a stage.

files         writes a file or a folder whole or not at all
work          a folder in which a killed stage resumes
steps         what a stage makes of each item: a folder that is there whole or not at all, here or on another machine
checkpoint    the state of a training run, with its digest
locks         of the kernel: they end with their process
processes     workers that end with the process that started them
memory        how much this process may take
run_records   which runs are alive on this machine

A guarantee belongs here once two stages need it. What a stage writes, and when, stays in its folder.
"""
