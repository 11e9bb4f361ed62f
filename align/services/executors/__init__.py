"""Executors: `engine.runner` says who does a stage's tasks. What a task computes is the same everywhere.

executors     the choice; processes of this machine
spark_tasks   the workers of a Spark cluster
slurm         arrays of jobs

Who runs a task, tries it again and counts it belongs here. What tasks are, and which files they commit, does not: the
stage knows (`align/durable/steps.py`).
"""
