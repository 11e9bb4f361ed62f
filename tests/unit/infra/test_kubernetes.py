"""infra/kubernetes and infra/slurm: valid files, parameters that exist, what each machine of a job runs."""

import os
import re
import shlex
import subprocess

from ruamel.yaml import YAML

from align.cli import VERBS
from align.config.infrastructure import ClusterConfig
from tests.support import ROOT
from tests.support.compose import read as read_compose
from tests.support.params import load_params

SCRIPT, KUBERNETES = ROOT / "infra/slurm/train.sh", ROOT / "infra/kubernetes/training"


def test_training_has_less_time_to_end_than_it_is_granted():
    """And a job that lost a machine starts again, with all of each machine's memory."""
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text("utf-8"), re.M))
    assert options.keys() >= {"requeue", "exclusive"} and (options["mem"], options["open-mode"]) == ("0", "append")
    assert not [name for name in options if name.startswith(("gpu", "gres"))]  # not all sites have such
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0 and os.access(SCRIPT, os.X_OK)
    stop_s = load_params().section(ClusterConfig).stop_s
    assert stop_s < int(options["signal"].removeprefix("B:USR1@"))
    assert stop_s < POD["terminationGracePeriodSeconds"]


#: The objects of Kubernetes, as they are before kustomize changes them.
OBJECTS = {
    (one["kind"], one["metadata"]["name"]): one
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for one in YAML(typ="safe", pure=True).load_all(path.read_text("utf-8"))
}
POD = OBJECTS["Job", "align-train"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def test_a_kustomization_lists_every_file_of_its_folder():
    listed = YAML(typ="safe", pure=True).load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert set(listed) == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}


def test_the_kubernetes_job_names_its_machines():
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


def test_a_container_has_few_rights_and_bounds():
    security = CONTAINER["securityContext"]
    assert POD["automountServiceAccountToken"] is False and POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(CONTAINER["resources"]["requests"]) and "memory" in CONTAINER["resources"]["limits"]
    assert re.fullmatch(r"align:\d+\.\d+\.\d+", CONTAINER["image"])
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in POD["volumes"]} and mounts["scratch"] == "/tmp"
    assert "command" not in CONTAINER  # it would replace the image's entrypoint, which reads the secrets


def test_secrets_are_references_to_what_the_script_writes():
    [secrets] = [volume["secret"] for volume in POD["volumes"] if "secret" in volume]
    assert {item["key"] for item in secrets["items"]} <= set(read_compose()["secrets"])
    given = OBJECTS["ConfigMap", "align"]["data"] | {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    for name, value in given.items():
        assert not re.search(r"PASSWORD|SECRET|AUTH|KEY|//[^/@]*:[^/@]*@", f"{name} {value}")


def test_its_pods_reach_each_other_names_and_the_servers_that_are_named():
    policy = OBJECTS["NetworkPolicy", "align-train"]["spec"]
    own = {"podSelector": {"matchLabels": {"job-name": "align-train"}}}
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["ingress"] == [{"from": [own]}]
    pods, names, servers = policy["egress"]
    assert pods == {"to": [own]} and {port["port"] for port in names["ports"]} == {53}
    assert servers == {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}
