"""The workflows: actions by digest, few rights, and what the weekly one is for."""

import re

import pytest
from ruamel.yaml import YAML

from tests.support import ROOT

WORKFLOWS = ROOT / ".github/workflows"


@pytest.mark.parametrize("name", ["ci", "weekly"])
def test_actions_are_named_by_digest_and_may_only_read(name):
    text = (WORKFLOWS / f"{name}.yml").read_text("utf-8")
    used = re.findall(r"uses: (.+)", text)
    assert used and all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v[0-9.]+", one) for one in used)
    assert YAML(typ="safe").load(text)["permissions"] == {"contents": "read"}


def test_the_weekly_run_installs_what_no_lock_pins():
    text = (WORKFLOWS / "weekly.yml").read_text("utf-8")
    assert "requirements.lock" not in text and "allow-prereleases: true" in text
    commands = [step["run"] for step in YAML(typ="safe").load(text)["jobs"]["newest"]["steps"] if "run" in step]
    assert commands[-1] == "make test" and any(".venv/.installed" in one for one in commands)
