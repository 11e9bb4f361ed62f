"""Prefect: when and where a stage runs, with which parameters, and what people see of it. No machine learning in here.

At the top: the flows that people start (pipeline, evaluate, promote, rollback, approve), the programs that
`align` becomes (plan, reconcile), and what they are asked for (request, dag).
"""
