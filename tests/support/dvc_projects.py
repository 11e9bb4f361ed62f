"""Small git and DVC projects for tests, with this repository's settings, in an environment of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

from align.services.git import git
from tests.support import ROOT
from tests.support.s3_server import KEY, SECRET
from tests.support.warm import commands

RECIPE = ROOT / "docs" / "scale.md"
ENV_EXAMPLE = ROOT / "infra" / "env.example"


def aws_variables(server):
    """The variables that infra/env.example names for S3, filled in."""
    values = {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "2",
    }  # fmt: skip
    return {name: values[name] for name in re.findall(r"^#?(AWS_\w+)=", ENV_EXAMPLE.read_text(), re.M)}


def environment(root, aws):
    """Without the user's settings of AWS and DVC, and without what DVC remembers of remotes in another checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
    machine = root.with_name(f"{root.name}.machine")
    env |= {
        "PATH": os.pathsep.join([str(commands()), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(machine / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(machine / "system"), "DVC_SITE_CACHE_DIR": str(machine / "site"),
        "AWS_CONFIG_FILE": str(machine / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(machine / "none"),
        "TEST_RUNS": str(root.with_name("runs")),
    }  # fmt: skip
    return env | dict(aws)


def enter(root, patch, variables=MappingProxyType({})):
    """Lets this process work in a project: its folder, which is returned, and its environment."""
    for name, value in environment(root, variables).items():
        patch.setenv(name, value)
    patch.chdir(root)
    return root


def attempt(root, command, aws, timeout_s=240):
    """A line typed in a checkout, on a machine that has only the variables `aws` for S3."""
    return subprocess.run(
        ["sh", "-c", command], cwd=root, env=environment(root, aws), capture_output=True, text=True, timeout=timeout_s
    )


def shell(root, command, aws, timeout_s=240):
    """stdout of a line that has to work."""
    done = attempt(root, command, aws, timeout_s)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def add_remote(text, root, bucket, aws, url):
    """Types the lines `dvc remote ...` of a text of this repository, which take bucket and server from variables."""
    lines = list(dict.fromkeys(re.findall(r"^(?:#   )?(dvc remote .*?)(?: # .*)?$", text.read_text(), re.M)))
    assert [line.split()[2] for line in lines] == ["add", "modify"], lines
    for line in lines:
        shell(root, line, {**aws, "BUCKET": bucket, "AWS_ENDPOINT_URL": url})


def commit_all(root, message="project"):
    """Commits every file, by an author of its own."""
    git(root, "add", "--all")
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", message)


def make_repository(root, files, ignored):
    """A repository with this one's settings of git and DVC and these files (path -> text), committed; `ignored` are
    lines for .gitignore, after this repository's.
    """
    git(root.parent, "init", "--quiet", "--initial-branch", "main", str(root))
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    for name, text in files.items():
        (root / name).write_text(text)
    with (root / ".gitignore").open("a") as lines:
        lines.write(ignored)
    commit_all(root)
    return root


def clone(project, name, branch):
    """A clone as on another machine: without the cache."""
    root = project.with_name(name)
    git(project.parent, "clone", "--quiet", "--branch", branch, str(project), str(root))
    assert not (root / ".dvc/cache").exists()
    return root


def file_bytes(folder):
    """Path in the folder -> bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def num_runs(project):
    """How often stages have run, in any checkout: each writes a line to $TEST_RUNS."""
    return len(project.with_name("runs").read_text().splitlines())
