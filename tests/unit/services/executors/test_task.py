"""What a task on another machine gives back: a value, an error that is final, or an error that is tried elsewhere."""

import gc
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from align.errors import DataError, ServiceError
from align.interfaces.executor import Task
from align.services.executors.task import result_of, worker_in


def fails(_, error):
    raise error


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Does an item in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def result(function, item):
        return result_of(worker_in(str(tmp_path), Task(nullcontext, function), tmp_path / "scratch"), item)

    return result


def test_what_data_is_the_cause_of_is_final(do):
    with pytest.raises(DataError, match="a damaged tar"):
        do(fails, DataError("a damaged tar")).get()
    assert do(lambda _, item: None, 1).get() is None


def test_what_a_server_is_the_cause_of_is_tried_elsewhere(do):
    with pytest.raises(ServiceError, match="no route to host"):
        do(fails, ServiceError("no route to host"))


@contextmanager
def opened(events, scratch):
    events.append(("opened", scratch))
    yield scratch
    events.append("closed")


def test_a_worker_keeps_what_it_has_opened_and_works_where_the_run_does_or_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events, scratch = [], tmp_path / "scratch"
    scratch.mkdir()
    worker = worker_in(
        str(tmp_path / "elsewhere"), Task(partial(opened, events), lambda kept, item: (kept, item)), scratch
    )
    assert Path.cwd() == scratch and events == []
    assert [result_of(worker, number).get() for number in (1, 2)] == [(scratch, 1), (scratch, 2)]
    gc.collect()
    assert events == [("opened", scratch)]
