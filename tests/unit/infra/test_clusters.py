"""infra/slurm and infra/kubernetes: valid files, parameters that exist, and what each machine of a job runs."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from align.cli import VERBS
from align.config.cluster import ClusterConfig
from tests.support import ROOT
from tests.support.params import load_params

SCRIPT, MANIFEST, IMAGE = ROOT / "infra/slurm/train.sh", ROOT / "infra/kubernetes/train.yaml", ROOT / "infra/Dockerfile"
#: Starts a job's two tasks as srun does, one after the other.
SRUN = 'for node in 0 1; do SLURM_NODEID=$node "$@" || exit; done\n'


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("num_nodes", "rendezvous"), [(2, "gpu7:29500"), (1, "null")])
def test_each_machine_of_a_slurm_job_is_told_its_place(tmp_path: Path, num_nodes: int, rendezvous: str) -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    program(tmp_path, "srun", SRUN if num_nodes == 2 else 'SLURM_NODEID=0 "$@"\n')
    program(tmp_path, "scontrol", 'test "$*" = "show hostnames gpu[7-8]" && printf "gpu7\\ngpu8\\n"\n')
    program(tmp_path, "align", 'printf "%s\\n" "$*"\n')
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "gpu[7-8]"}
    env["SLURM_JOB_NUM_NODES"] = str(num_nodes)
    command = ["bash", str(SCRIPT), "pretrain", "--set", "pretrain.num_steps=2 # x"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == num_nodes
    for node, line in enumerate(lines):
        assert line.startswith("pretrain --set pretrain.num_steps=2 # x ")
        overrides = re.findall(r"--set (cluster\.\S+)", line)
        values = load_params(None, overrides).section(ClusterConfig)
        assert (values.num_nodes, values.node_rank) == (num_nodes, node)
        assert str(values.rendezvous or "null") == rendezvous


def test_a_failed_task_fails_the_slurm_job(tmp_path: Path) -> None:
    program(tmp_path, "srun", "exit 3\n")
    program(tmp_path, "scontrol", "echo gpu7\n")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "gpu7", "SLURM_JOB_NUM_NODES": "1"}
    assert subprocess.run(["bash", str(SCRIPT), "pretrain"], env=env, check=False).returncode == 3


def test_the_kubernetes_job_names_its_machines() -> None:
    service, policy, job = YAML(typ="safe", pure=True).load_all(MANIFEST.read_text("utf-8"))
    assert [one["kind"] for one in (service, policy, job)] == ["Service", "NetworkPolicy", "Job"]
    name, spec = job["metadata"]["name"], job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == {"job-name": name}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    [container] = spec["template"]["spec"]["containers"]
    line = container["command"][2]
    words = shlex.split(line.replace("$JOB_COMPLETION_INDEX", "1"))
    assert words[:2] == ["exec", "align"] and words[2] in VERBS
    values = load_params(None, words[4::2]).section(ClusterConfig)
    assert (values.num_nodes, values.node_rank) == (spec["completions"], 1)
    assert values.rendezvous == f"{name}-0.{service['metadata']['name']}:29500"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def copies(text: str) -> dict[str, str]:
    """What a Dockerfile copies -> where it lies in the working directory."""
    lines = [line.split() for line in re.findall(r"^COPY (.+)$", text, re.M)]
    return {
        name: os.path.normpath(Path(target, Path(name).name) if target.endswith("/") else target)
        for *names, target in lines
        for name in names
    }


def test_the_image_copies_what_exists_and_what_its_context_holds() -> None:
    text = IMAGE.read_text("utf-8")
    copied = copies(text)
    allowed = re.findall(r"^!(\S+)$", IMAGE.with_name("Dockerfile.dockerignore").read_text("utf-8"), re.M)
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    [target] = re.findall(r"^RUN make (\S+)$", text, re.M)
    assert "STAMP := $(VENV)/.installed" in (ROOT / "Makefile").read_text("utf-8") and target == ".venv/.installed"


def test_the_image_has_what_the_package_is_made_from() -> None:
    """`pip install -e .` stops at a file of this list that is absent."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = [Path(name) for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]]
    copied = copies(IMAGE.read_text("utf-8"))
    assert [str(path) for path in needed if not {str(path), *map(str, path.parents)} & set(copied)] == []
    assert all(target == name for name, target in copied.items())  # each where the checkout has it
