"""Deploys the flows of prefect.yaml, as each `make up` does.

    python infra/deploy.py

The file is what a deployment is, with one exception: a deployment that is there already keeps its schedules, since
people switch them on, change them and add others in Prefect's UI. The file has the first ones.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.server.schemas import schedules as kinds

from align.config.params import parse_yaml
from align.display.visible import visible
from align.durable.files import to_json
from align.errors import AlignError, ServiceError

POOL = "local"


def deploy(file: Path) -> list[str]:
    """Makes the work pool and the deployments of a file; returns a line for each schedule that is on.

    Raises:
        ServiceError: Prefect's server refuses.
    """
    there = {deployment.name for deployment in _deployments()}
    values = parse_yaml(file.read_text(encoding="utf-8"))
    for deployment in values["deployments"]:
        if deployment["name"] in there:
            deployment.pop("schedules", None)
    # what a run may change of the process that it runs in: nothing
    jobs = ("--base-job-template", str(Path(__file__).with_name("work_pool.json")), "--overwrite")
    _prefect("work-pool", "create", POOL, "--type", "process", *jobs)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as changed:
        changed.write(to_json(values))  # which is YAML
        changed.flush()
        _prefect("deploy", "--all", "--prefect-file", changed.name)
    lines = []
    for deployment in _deployments():
        for schedule in (one.schedule for one in deployment.schedules if one.active):
            kind = getattr(kinds, type(schedule).__name__)
            [at] = asyncio.run(kind(**schedule.model_dump()).get_dates(1)) or ["never"]
            lines.append(f"{visible(deployment.name)} has a schedule that is on; next: {at}")
    return lines


def _deployments() -> list[DeploymentResponse]:
    try:
        with get_client(sync_client=True) as client:
            return client.read_deployments()
    except httpx.HTTPError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ServiceError(f"Prefect's server did not say what is deployed: {reason}") from None


def _prefect(*words: str) -> None:
    done = subprocess.run(["prefect", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"`prefect {' '.join(words[:2])}` failed: {(done.stderr or done.stdout).strip()[-500:]}")


if __name__ == "__main__":
    try:
        print("deployed the flows of prefect.yaml", *deploy(Path("prefect.yaml")), sep="\n")
    except AlignError as error:
        sys.exit(f"align: error: {error}")
