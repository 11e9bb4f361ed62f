"""Alerts arrive at a webhook on this machine, and never fail or hold up what they are about."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from align.errors import DataError
from flows import alerts
from flows.alerts import VARIABLE, alert, alert_soon, alerted, is_health_warning
from flows.tasks.child_process import CommandError
from flows.tasks.stage_task import StageError

SECRET = "T0/B0/verysecret"


class Hook(HTTPServer):
    """A webhook: `answers` are its next status codes (200 when there are none), `bodies` what it got.

    It answers while `works` is set.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int] = []
        self.bodies: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.works = threading.Event()
        self.works.set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.works.wait(100)
        self.server.paths.append(self.path)
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv(VARIABLE, server.address)
    monkeypatch.setattr(alerts, "PAUSE_S", 0.01)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_alert_says_what_happened_and_where(hook: Hook) -> None:
    said: list[str] = []
    text = "run a failed: https://me:secret@host/x\x1b[31m"
    assert alert("run_failed", text, said.append, run="a", page="http://127.0.0.1:4200/runs/1")
    (body,) = hook.bodies
    assert (body["kind"], body["run"], body["page"]) == ("run_failed", "a", "http://127.0.0.1:4200/runs/1")
    assert body["checkout"] == str(Path.cwd())
    assert (
        "secret" not in str(body["text"]) and "\x1b" not in str(body["text"]) and "https://host/x" in str(body["text"])
    )
    assert said == []


def test_without_a_webhook_nothing_is_sent(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    said: list[str] = []
    assert not alert("health", "x", said.append)
    assert (hook.bodies, said) == ([], [])


def test_what_prints_a_warning_does_not_wait_for_the_webhook(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    hook.works.clear()
    alert_soon("health", "the loss is flat", pytest.fail, run="a")
    assert hook.bodies == []  # and this line is reached
    sender = next(thread for thread in threading.enumerate() if thread.name.endswith("(alert)"))
    assert sender.daemon  # nor does the end of a run
    hook.works.set()
    sender.join(100)
    assert [(body["kind"], body["text"], body["run"]) for body in hook.bodies] == [("health", "the loss is flat", "a")]
    monkeypatch.delenv(VARIABLE)
    before = threading.active_count()
    alert_soon("health", "x", pytest.fail)
    assert threading.active_count() <= before and len(hook.bodies) == 1


def test_a_server_that_fails_once_gets_it_again(hook: Hook) -> None:
    hook.answers = [503, 429]
    assert alert("health", "x", pytest.fail)
    assert len(hook.bodies) == 3


@pytest.mark.parametrize(("answers", "num_asked"), [([404], 1), ([500, 500, 500], 3), ([302], 1)])
def test_one_that_is_refused_is_a_line_without_the_address(hook: Hook, answers: list[int], num_asked: int) -> None:
    hook.answers = list(answers)
    said: list[str] = []
    assert not alert("gate_failed", "x", said.append)
    assert said == [f"alert not sent (gate_failed): {VARIABLE} at 127.0.0.1: HTTP {answers[-1]}"]
    assert hook.paths == [f"/{SECRET}"] * num_asked  # a redirect is not followed


@pytest.mark.parametrize(
    ("address", "host", "why"),
    [
        (f"http://127.0.0.1:9/{SECRET}", "127.0.0.1", "Connection refused"),
        (f"ftp://host/{SECRET}", "host", "expected an address"),
        (f"https:///{SECRET}", "?", "expected an address"),
        (f"http://[::1/{SECRET}", "?", "expected an address"),
        (f"http://127.0.0.1:port/{SECRET}", "127.0.0.1", ""),
        (f"http://127.0.0.1:9/a b {SECRET}", "127.0.0.1", ""),
        (SECRET, "?", "expected an address"),
    ],
)
def test_a_webhook_that_cannot_be_reached_fails_nothing(
    address: str, host: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    monkeypatch.setattr(alerts, "PAUSE_S", 0.01)
    said: list[str] = []
    assert not alert("run_failed", "x", said.append)
    (line,) = said
    assert f"at {host}: " in line and why in line
    assert SECRET not in line and "verysecret" not in line


def test_a_failed_run_and_a_failed_gate_are_told_and_still_fail(hook: Hook) -> None:
    gate = StageError("`dvc repro` failed: keep-rate 0.1 is below 0.2")
    gate.stage = "validate"
    for error, kind in ((gate, "gate_failed"), (CommandError("x"), "run_failed"), (DataError("no ref"), "run_failed")):
        with pytest.raises(type(error)), alerted("mine", pytest.fail):
            raise error
        assert hook.bodies[-1]["kind"] == kind
        assert hook.bodies[-1]["text"] == f"run mine failed: {error}"


def test_a_person_who_ends_a_run_is_not_told(hook: Hook) -> None:
    with pytest.raises(KeyboardInterrupt), alerted("mine", pytest.fail):
        raise KeyboardInterrupt
    assert hook.bodies == []


def test_a_run_fails_as_it_did_where_the_webhook_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/x")
    monkeypatch.setattr(alerts, "PAUSE_S", 0.01)
    said: list[str] = []
    with pytest.raises(DataError, match="no ref"), alerted("mine", said.append):
        raise DataError("no ref")
    assert len(said) == 1


def test_the_lines_of_health_are_recognised() -> None:
    from align.config.infrastructure import HealthConfig
    from align.training.health import Health

    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.training.health.say", printed.append)
        health = Health(
            HealthConfig(
                temperature=(0.1, 1.0), temperature_moves=None, stuck_steps=10, gradient_norm_jump=None,
                min_effective_rank_share=None, max_batch_norm_gap=None, max_loader_wait_share=None, device_tflops=None,
                price_per_hour=None,
            ),
            "pretrain",
        )  # fmt: skip
        health.step(1_200, temperature=2.0, gradient_norm=1.0)
    (line,) = printed
    assert is_health_warning(line)
    assert not is_health_warning("pretrain: step 1,200: temperature is well again")


def test_the_program_sends_a_test(
    hook: Hook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alerts.main() == 0
    assert hook.bodies[0]["kind"] == "test"
    monkeypatch.delenv(VARIABLE)
    assert alerts.main() == 1
    assert f"{VARIABLE} is not set" in capsys.readouterr().err
