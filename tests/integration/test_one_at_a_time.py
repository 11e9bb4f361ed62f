"""Of promote and rollback, one moves the aliases at a time; the other says what it waits for."""

import threading
from types import SimpleNamespace

import pytest

from align.cli import build_parser
from align.durable.locks import locked
from align.errors import DataError
from align.release.aliases import rollback
from align.release.promotion import promote
from tests.support.params import load_params


def arguments(verb):
    """Those of a command without any."""
    name = verb.__name__.rpartition(".")[2]
    return build_parser(name).parse_args([name])


@pytest.mark.parametrize("verb", [promote, rollback])
def test_one_waits_for_the_other(verb, tmp_path, monkeypatch):
    order, waits = list[str](), threading.Event()

    def moves(*_):
        order.append("second")
        raise DataError("no candidate")

    def say(line):
        assert line.startswith("waiting for align rollback, which holds .align/locks/champion")
        waits.set()

    monkeypatch.chdir(tmp_path)
    tracker = SimpleNamespace(registry=SimpleNamespace(version_at=moves))
    replaced = {"require_store": lambda: None, "Tracker": lambda: tracker, "say": say}
    # Under the lock promote records what was moved by hand; what it judges later needs none.
    replaced |= {"take_back": moves} if verb is rollback else {"settle": moves}
    for attribute, value in replaced.items():
        monkeypatch.setattr(verb, attribute, value)

    def second():
        with pytest.raises(DataError):
            verb.main(load_params(), arguments(verb))

    thread = threading.Thread(target=second)
    with locked(promote.LOCK, "align rollback", order.append):
        thread.start()
        assert waits.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
