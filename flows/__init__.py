"""When and where the stages run: Prefect flows over the DAG of dvc.yaml, git worktrees, supervised children. No ML."""
