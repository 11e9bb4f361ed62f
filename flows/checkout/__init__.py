"""Where a run works: the checkout or a worktree of its own, what git has of it, and what a run leaves there.

Only git and `align.services.dvc` are asked here; Prefect is not.
"""
