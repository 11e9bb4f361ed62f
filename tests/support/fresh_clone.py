"""A fresh clone of this checkout, as it is committed, with the stack of `make up`: what a newcomer has."""

import subprocess
from contextlib import contextmanager

from align.services.git import git
from tests.support import ROOT
from tests.support.local_stack import Stack
from tests.support.small_checkout import REDUCED

#: What makes the pipeline small, and has no field of its own in the form.
MORE = {
    key: value
    for key, value in REDUCED.items()
    if key not in ("pretrain.num_steps", "pretrain.batch_size") and not key.endswith((".num_threads", ".num_processes"))
}


class Clone(Stack):
    """The clone, in a folder that is made; its servers get free ports."""

    def __init__(self, root):
        git(root.parent, "clone", "--quiet", str(ROOT), str(root))
        super().__init__(root)
        self.env = {key: value for key, value in self.env.items() if not key.startswith("AWS_")}
        self.env |= {"PYTHONPATH": str(root)}

    @contextmanager
    def running(self):
        """`make up`; at the end `make down`, and its ports are others' again."""
        try:
            self.said = self.make("up")
            yield
        finally:
            self.make("down")
            self.close()

    def make(self, target):
        """`make TARGET`, with the environment of these tests: to make a new one takes minutes. What it printed."""
        done = subprocess.run(
            ["make", "--old-file=.venv/.installed", target], cwd=self.root, env=self.env, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
