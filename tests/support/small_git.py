"""A small git repository with a few files, committed."""

from align.services.git import git


def write(root, files):
    """Makes the repository `root`, which is returned; path -> text."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    git(root, "init", "--quiet", "--template=")
    with (root / ".git/config").open("a") as config:
        config.write("[user]\nname = test\nemail = test@localhost\n")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "first")
    return root
