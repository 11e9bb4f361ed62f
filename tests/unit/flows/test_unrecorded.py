"""Which deployed runs without a record are dead, and which are somebody's."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.reconcile import Processes, is_dead, look

#: Seconds since 1970.
STARTED = 1_000_000.0


def flow_run(kind: StateType, changed_at: float = STARTED) -> FlowRun:
    state: State[None] = State(type=kind, timestamp=datetime.fromtimestamp(changed_at, UTC))
    return FlowRun(flow_id=uuid4(), state=state, state_type=kind)


@pytest.mark.parametrize("kind", [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
def test_one_that_a_process_works_on_is_not_dead(kind: StateType) -> None:
    run = flow_run(kind)
    assert not is_dead(run, Processes(frozenset({str(run.id)}), None))
    assert is_dead(run, Processes(frozenset({str(uuid4())}), None))


@pytest.mark.parametrize(
    ("kind", "worker", "dead"),
    [
        (StateType.PENDING, STARTED - 60, False),  # it submitted it, and may be about to start its process
        (StateType.PENDING, STARTED + 1, False),  # clocks differ
        (StateType.PENDING, STARTED + 60, True),  # of an earlier worker
        (StateType.CANCELLING, STARTED - 60, False),  # it obeys
        (StateType.CANCELLING, STARTED + 60, True),
        (StateType.RUNNING, STARTED - 60, True),  # its process had begun, and is there no more
    ],
)
def test_beside_a_worker_a_run_that_it_may_start_is_not_dead(kind: StateType, worker: float, dead: bool) -> None:
    assert is_dead(flow_run(kind), Processes(frozenset(), worker)) == dead


def test_processes_tell_by_their_environment_and_their_folder(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    sleep = [sys.executable, "-c", "import time; print('there', flush=True); time.sleep(60)"]
    run = str(uuid4())
    before = time.time()
    started = [
        subprocess.Popen(sleep, cwd=elsewhere, env={"PREFECT__FLOW_RUN_ID": run}, stdout=subprocess.PIPE),
        subprocess.Popen([*sleep, "worker", "start"], cwd=elsewhere, stdout=subprocess.PIPE),
    ]
    try:
        for process in started:
            assert process.stdout and process.stdout.readline()
        found = look(here)
        assert run in found.runs and found.oldest_worker is None
        started.append(subprocess.Popen([*sleep, "worker", "start"], cwd=here, stdout=subprocess.PIPE))
        worker = started[-1]
        assert worker.stdout and worker.stdout.readline()
        found = look(here)
        assert found.oldest_worker is not None and before - 1 < found.oldest_worker < time.time() + 1
        started[0].kill()
        started[0].wait()
        assert run not in look(here).runs
    finally:
        for process in started:
            process.kill()
            process.communicate()
