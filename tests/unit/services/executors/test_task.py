"""What a task on another machine gives back: a value, an error that is final, or an error that is tried elsewhere."""

from contextlib import nullcontext

import pytest

from align.durable import pieces
from align.errors import DataError, ServiceError
from align.interfaces.executor import Step
from align.services.executors import task


def fails(_, error):
    raise error


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Does a task in a folder of its own; the process's own state is restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pieces, "_scratch", [])
    monkeypatch.setattr(task, "_kept", {})

    def result(function, item):
        step = Step(nullcontext, function)
        return task.do(step, item, folder=str(tmp_path), scratch=tmp_path / "scratch", opened_as=b"")

    return result


def test_what_data_is_the_cause_of_is_final(do):
    with pytest.raises(DataError, match="a damaged tar"):
        do(fails, DataError("a damaged tar")).get()
    assert do(lambda _, item: None, 1).get() is None


def test_what_a_server_is_the_cause_of_is_tried_elsewhere(do):
    with pytest.raises(ServiceError, match="no route to host"):
        do(fails, ServiceError("no route to host"))
