"""Prefect: when and where a stage runs, with which parameters, and what people see of it. No machine learning in here.

At the top: the flows that people start (pipeline, evaluate, promote, rollback, approve, study), a stage and a command
as tasks of them, the programs `plan` and `ended`, and what they are asked for (request, dag). Imports lead down the
layers of pyproject.toml.
"""
