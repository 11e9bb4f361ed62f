"""What people see of a run in Prefect: its progress and its summary."""
