"""A watch outlives questions that fail, and ends what runs, or what starts later."""

import threading

import pytest

from flows.tasks.child_process import Watch


def test_questions_that_fail_do_not_end_the_watch() -> None:
    ended, asked = threading.Event(), list[int]()

    def ask() -> BaseException | None:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("the server is unavailable")
        return KeyboardInterrupt("paused") if len(asked) == 5 else None

    with Watch(ask, every_s=0.01) as watch:
        watch.check()
        with watch.ending(ended.set):
            assert ended.wait(60)
        with pytest.raises(KeyboardInterrupt, match="paused"):
            watch.check()
        late = threading.Event()
        with watch.ending(late.set):
            assert late.is_set()  # work that starts afterwards is ended, too
    assert len(asked) == 5


def test_a_closed_watch_asks_no_more() -> None:
    asked = threading.Semaphore(0)
    with Watch(lambda: asked.release(), every_s=0.01):
        assert asked.acquire(timeout=60) and asked.acquire(timeout=60)
    threads = [thread for thread in threading.enumerate() if thread.name == "watch"]
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
