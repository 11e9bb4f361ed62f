from uuid import uuid4

from prefect.client.schemas.objects import FlowRun
from prefect.states import Running

from flows.remote import send
from flows.remote.order import HEARD
from flows.remote.send import _Signs


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(send.time, "monotonic", lambda: self.now)


def run(state, heard):
    return FlowRun(flow_id=uuid4(), state=state, labels={HEARD: heard})


def test_a_worker_is_silent_since_its_last_sign(monkeypatch):
    clock, state = Clock(monkeypatch), Running()
    signs = _Signs()
    silent = []
    for seconds, heard in [(0, 1), (2, 1), (2, 2), (2, 2), (10, 2), (15, 2), (1, 3)]:
        clock.now += seconds
        signs.see(run(state, heard))
        silent.append(signs.silent_s)
    assert silent == [0, 2, 0, 2, 12, 27, 0]


def test_a_change_of_state_is_a_sign(monkeypatch):
    clock, signs = Clock(monkeypatch), _Signs()
    signs.see(run(Running(), 1))
    clock.now += 10
    signs.see(run(Running(), 1))  # each state has an id of its own
    assert signs.silent_s == 0


def test_while_the_server_was_away_nobody_could_be_heard(monkeypatch):
    clock, signs, state = Clock(monkeypatch), _Signs(), Running()
    signs.see(run(state, 1))
    clock.now += 3600
    signs.see(run(state, 1))
    assert signs.silent_s == 0
    clock.now += 5
    signs.see(run(state, 1))
    assert signs.silent_s == 5
