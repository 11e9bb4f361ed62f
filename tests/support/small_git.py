"""A git repository with params.yaml and nothing else."""

from pathlib import Path

from flows.git_repository import git


def write(root: Path, params: str) -> Path:
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(params, encoding="utf-8")
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@localhost")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "first")
    return root
