"""infra/slurm and infra/kubernetes: valid files, parameters that exist, and what each machine of a job runs."""

import ipaddress
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.cli import VERBS
from align.config.infrastructure import ClusterConfig
from align.services.job import Seat, cluster_of_job
from tests.support import ROOT
from tests.support.compose import read as read_compose
from tests.support.params import load_params

SCRIPT, KUBERNETES, IMAGE = ROOT / "infra/slurm/train.sh", ROOT / "infra/kubernetes", ROOT / "infra/Dockerfile"
#: Starts the tasks of a step of two machines as srun does, one after the other, with what SLURM tells them.
SRUN = """
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
export SLURM_STEP_NUM_NODES=$NODES SLURM_STEP_NUM_TASKS=$TASKS SLURM_STEP_NODELIST=gpu[7-8] SLURM_JOB_ID=4000123
for task in $(seq 0 $((TASKS - 1))); do
  each=$((TASKS / NODES))
  SLURM_PROCID=$task SLURM_NODEID=$((task / each)) SLURM_LOCALID=$((task % each)) "$@" || exit
done
"""


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("nodes", "tasks"), [(2, 2), (1, 1), (2, 4)])
def test_each_task_of_a_slurm_job_is_told_its_place(tmp_path: Path, nodes: int, tasks: int) -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    program(tmp_path, "srun", SRUN)
    program(tmp_path, "align", 'printf "%s\\n" "$*"; env | grep ^SLURM_; echo\n')
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODES": str(nodes), "TASKS": str(tasks)}
    command = ["bash", str(SCRIPT), "pretrain", "--set", "pretrain.num_steps=2 # x"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    said = [each.splitlines() for each in done.stdout.strip().split("\n\n")]
    assert [words for words, *_ in said] == ["pretrain --set pretrain.num_steps=2 # x"] * tasks
    for task, (_, *variables) in enumerate(said):
        place, seat = cluster_of_job(load_params().section(ClusterConfig), dict(one.split("=", 1) for one in variables))
        assert (place.num_nodes, place.node_rank) == (tasks, task)
        assert place.rendezvous == (None if tasks == 1 else "gpu7:29623")
        assert seat == (Seat(task % 2, 2, ranks=1) if tasks > nodes else Seat())


def test_a_failed_task_fails_the_slurm_job(tmp_path: Path) -> None:
    program(tmp_path, "srun", "exit 3\n")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", str(SCRIPT), "pretrain"], env=env, check=False).returncode == 3


def test_training_has_less_time_to_end_than_it_is_granted() -> None:
    """And a job that lost a machine starts again, with all of each machine's memory."""
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text("utf-8"), re.M))
    assert options.keys() >= {"requeue", "exclusive"} and (options["mem"], options["open-mode"]) == ("0", "append")
    stop_s = load_params().section(ClusterConfig).stop_s
    assert stop_s < int(options["signal"].removeprefix("TERM@"))
    assert stop_s < PODS["align-train"]["terminationGracePeriodSeconds"]


def documents(folder: str) -> list[dict[str, Any]]:
    """The objects in the files of a folder, as they are before kustomize changes them."""
    files = sorted(path for path in (KUBERNETES / folder).glob("*.yaml") if path.name != "kustomization.yaml")
    return [one for path in files for one in YAML(typ="safe", pure=True).load_all(path.read_text("utf-8"))]


OBJECTS = {(one["kind"], one["metadata"]["name"]): one for one in (*documents("base"), *documents("training"))}
PODS = {name: one["spec"]["template"]["spec"] for (kind, name), one in OBJECTS.items() if kind in ("Deployment", "Job")}
CONTAINERS = [
    (name, container)
    for name, pod in PODS.items()
    for container in (*pod.get("initContainers", ()), *pod["containers"])
]


def test_a_kustomization_lists_every_file_of_its_folder() -> None:
    for folder in ("base", "training"):
        text = (KUBERNETES / folder / "kustomization.yaml").read_text("utf-8")
        listed = YAML(typ="safe", pure=True).load(text)["resources"]
        files = {path.name for path in (KUBERNETES / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert set(listed) == files
    assert set(PODS) == {"prefect", "mlflow", "worker", "search", "align-train"}


def test_the_kubernetes_job_names_its_machines() -> None:
    [name] = {name for kind, name in OBJECTS if kind == "Job"}
    service, policy, job = (OBJECTS[kind, name] for kind in ("Service", "NetworkPolicy", "Job"))
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    assert spec["backoffLimitPerIndex"] > 0 == spec["maxFailedIndexes"] and "backoffLimit" not in spec
    drained, mistaken = spec["podFailurePolicy"]["rules"]
    assert drained == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert mistaken["action"] == "FailJob" and mistaken["onExitCodes"]["values"] == [2]  # argparse's
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # as such a policy requires
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == {"job-name": name}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    [container] = spec["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    line = container["args"][2].replace("$JOB_COMPLETION_INDEX", "1").replace("$NUM_NODES", variables["NUM_NODES"])
    words = shlex.split(line)
    assert words[:2] == ["exec", "align"] and words[2] in VERBS
    values = load_params(None, words[4::2]).section(ClusterConfig)
    assert (values.num_nodes, values.node_rank) == (spec["completions"], 1)
    assert values.rendezvous == f"{name}-0.{service['metadata']['name']}:29500"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8


@pytest.mark.parametrize(("name", "container"), CONTAINERS)
def test_a_container_has_few_rights_and_bounds(name: str, container: dict[str, Any]) -> None:
    pod, security = PODS[name], container["securityContext"]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and "memory" in container["resources"]["limits"]
    assert re.fullmatch(r"align:\d+\.\d+\.\d+", container["image"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]} and mounts["scratch"] == "/tmp"
    assert "command" not in container  # it would replace the image's entrypoint, which reads the secrets


@pytest.mark.parametrize("name", sorted(set(PODS) - {"align-train"}))
def test_a_server_has_probes_that_its_guard_answers(name: str) -> None:
    [container] = PODS[name]["containers"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]
        if name in ("prefect", "mlflow", "search"):
            [header] = probe["httpGet"]["httpHeaders"]
            port = container["ports"][0]["containerPort"]
            assert header == {"name": "Host", "value": f"127.0.0.1:{port}"}  # not the pod's address
    service = OBJECTS.get(("Service", name))
    assert (service is None) == (name == "worker")
    if service:
        assert service["spec"]["selector"] == OBJECTS["Deployment", name]["spec"]["selector"]["matchLabels"]
        assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("name", PODS)
def test_secrets_are_references_to_what_the_script_writes(name: str) -> None:
    [secrets] = [volume["secret"] for volume in PODS[name]["volumes"] if "secret" in volume]
    compose = read_compose()
    assert {item["key"] for item in secrets["items"]} <= set(compose["secrets"])
    assert ("PGPASSWORD" in {item["path"] for item in secrets["items"]}) == (name in ("prefect", "mlflow"))
    for _, container in CONTAINERS:
        for entry in container.get("env", []):
            assert not re.search(r"PASSWORD|SECRET|AUTH|KEY|//[^/@]*:[^/@]*@", f"{entry['name']} {entry.get('value')}")


def variables(container: dict[str, Any]) -> set[str]:
    """The names of a container's variables."""
    maps = [OBJECTS["ConfigMap", entry["configMapRef"]["name"]] for entry in container.get("envFrom", [])]
    return {entry["name"] for entry in container.get("env", [])} | {key for each in maps for key in each["data"]}


@pytest.mark.parametrize("name", ["prefect", "mlflow", "worker", "search"])
def test_a_pod_runs_what_the_service_of_compose_runs(name: str) -> None:
    """tests/integration/test_compose.py runs that."""
    [container] = PODS[name]["containers"]
    service = read_compose()["services"][name]
    assert container["args"] == shlex.split(service["command"])
    assert container["workingDir"] == service["working_dir"]
    only_here = {"ALIGN_REPOSITORY", "ALIGN_REVISION"}
    assert variables(container) - only_here == set(service["environment"])
    given = [entry if isinstance(entry, dict) else {"source": entry, "target": entry} for entry in service["secrets"]]
    [secrets] = [volume["secret"] for volume in PODS[name]["volumes"] if "secret" in volume]
    assert {(item["key"], item["path"]) for item in secrets["items"]} == {(e["source"], e["target"]) for e in given}


def test_policies_let_in_whom_the_environment_sends() -> None:
    """A pod whose environment names a server may connect to it, and nobody else."""
    for server, variable in (("prefect", "PREFECT_API_URL"), ("mlflow", "MLFLOW_TRACKING_URI")):
        [rule] = OBJECTS["NetworkPolicy", f"align-{server}"]["spec"]["ingress"]
        [peer] = rule["from"]
        selector = peer["podSelector"]
        found = selector.get("matchExpressions", [{"values": [selector.get("matchLabels", {}).get("app")]}])
        clients = {name for name, container in CONTAINERS if variable in variables(container)}
        clients -= {"align-train"} if server == "prefect" else set()  # its flow runs in the worker
        assert set(found[0]["values"]) == {name.removeprefix("align-") for name in clients}
    both = ["Ingress", "Egress"]
    assert OBJECTS["NetworkPolicy", "align-nobody"]["spec"] == {"podSelector": {}, "policyTypes": both}


def rules(app: str) -> list[dict[str, Any]]:
    """The rules of egress for the pods of an app, but for that on names."""
    found = []
    for (kind, name), one in OBJECTS.items():
        selector = one["spec"]["podSelector"] if kind == "NetworkPolicy" and name != "align-names" else {}
        labels = {"app": app} | ({"job-name": "align-train"} if app == "train" else {})
        chosen = [each["values"] for each in selector.get("matchExpressions", ()) if each["key"] == "app"]
        if selector and selector.get("matchLabels", {}).items() <= labels.items() and (not chosen or app in chosen[0]):
            found += one["spec"].get("egress", [])
    return found


def reached(app: str, address: str) -> set[int]:
    """The ports at which the pods of an app reach an address."""
    asked = ipaddress.ip_address(address)
    return {
        port["port"]
        for rule in rules(app)
        for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer)
        if asked in ipaddress.ip_network(block["cidr"])
        and not any(asked in ipaddress.ip_network(each) for each in block.get("except", ()))
        for port in rule["ports"]
    }


@pytest.mark.parametrize("app", ["prefect", "mlflow", "worker", "search", "train"])
def test_pods_reach_what_they_need(app: str) -> None:
    names = OBJECTS["NetworkPolicy", "align-names"]["spec"]
    assert names["podSelector"] == {} and {port["port"] for port in names["egress"][0]["ports"]} == {53}
    peers = [peer["podSelector"]["matchLabels"] for rule in rules(app) for peer in rule["to"] if "podSelector" in peer]
    pod = "align-train" if app == "train" else app
    servers = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}
    asked = {
        server
        for server, name in servers.items()
        for owner, one in CONTAINERS
        if owner == pod and name in variables(one)
    }
    asked -= {"prefect"} if app == "train" else set()
    assert {labels["app"] for labels in peers if "app" in labels} == asked
    assert [labels for labels in peers if "app" not in labels] == ([{"job-name": pod}] if app == "train" else [])
    assert reached(app, "192.0.2.1") >= (set() if app == "search" else {443, 5432})
    public = {80, 443} if app == "worker" else set()
    assert reached(app, "93.184.216.34") == reached(app, "2606:2800:220:1::1") == public


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "10.1.2.3", "172.20.0.1", "192.168.1.1", "100.100.100.200", "127.0.0.1", "0.0.0.0",
        "192.0.0.192", "255.255.255.255", "::1", "::ffff:169.254.169.254", "fd00:ec2::254", "fe80::1",
        "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "ff02::1",
    ],
)  # fmt: skip
def test_no_pod_reaches_private_addresses_or_a_cloud_s_metadata(address: str) -> None:
    assert [app for app in ("prefect", "mlflow", "worker", "search", "train") if reached(app, address)] == []


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
    [target] = re.findall(r"^RUN .* make (\S+) ", text, re.M)
    assert "STAMP := $(VENV)/.installed" in (ROOT / "Makefile").read_text("utf-8") and target == ".venv/.installed"


def test_the_image_has_what_the_package_is_made_from() -> None:
    """`pip install -e .` stops at a file of this list that is absent."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = [Path(name) for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]]
    copied = copies(IMAGE.read_text("utf-8"))
    assert [str(path) for path in needed if not {str(path), *map(str, path.parents)} & set(copied)] == []
    assert all(target == name for name, target in copied.items())  # each where the checkout has it
