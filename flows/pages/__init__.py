"""What people see of a run in Prefect: its progress, the reports of its stages, and its summary.

What is shown is read from reports and from what commands print. Nothing here starts a command or decides anything.
"""
