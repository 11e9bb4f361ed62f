"""Who has sent much waits for itself; others take their turn at once."""

import asyncio
import threading

import pytest

from align.search.service.turns import BusyError, Threads, Turns


def taken(turns: Turns[str]) -> str:
    items = ""
    while (one := turns.take(wait=False)) is not None:
        items += one[1]
        turns.done(one[0])
    return items


def test_each_client_in_turn_and_its_own_in_order() -> None:
    turns: Turns[str] = Turns(100)
    for item in "abcde":
        turns.put("one", item)
    turns.put("two", "X")
    turns.put("three", "1")
    turns.put("three", "2")
    assert len(turns) == 8 and taken(turns) == "aX1b2cde" and len(turns) == 0


def test_where_there_is_no_room_the_client_with_the_most_comes_again() -> None:
    turns: Turns[str] = Turns(4)
    assert [turns.put("one", item) for item in "abcde"] == [None] * 4 + ["e"]
    assert [turns.put("two", item) for item in "XYZ"] == ["d", "c", "Z"]
    assert turns.put("three", "1") == "b" and taken(turns) == "aX1Y"


def test_one_client_never_has_all_threads() -> None:
    turns: Turns[str] = Turns(100, max_of_client=2)
    for item in "abc":
        turns.put("one", item)
    assert [turns.take(wait=False) for _ in range(3)] == [("one", "a"), ("one", "b"), None]
    turns.put("two", "X")
    assert turns.take(wait=False) == ("two", "X") and turns.take(wait=False) is None
    turns.done("one")
    assert turns.take(wait=False) == ("one", "c")


def test_threads_answer_the_others_while_one_client_keeps_what_it_may() -> None:
    go, order = threading.Event(), []
    threads = Threads("test", 3, max_waiting=20, max_of_client=2)

    async def ask() -> None:
        slow = [asyncio.create_task(threads.do("one", lambda: go.wait(100))) for _ in range(10)]
        await asyncio.sleep(0)
        order.extend([await threads.do("two", lambda: 2) for _ in range(5)])
        with pytest.raises(ZeroDivisionError):
            await threads.do("two", lambda: 1 // 0)
        slow[-1].cancel()
        many = [asyncio.create_task(threads.do("one", lambda: True)) for _ in range(20)]
        await asyncio.sleep(0)
        order.append(await threads.do("three", lambda: 3))
        go.set()
        results = await asyncio.gather(*slow, *many, return_exceptions=True)
        assert {type(one) for one in results} == {bool, BusyError, asyncio.CancelledError}

    asyncio.run(ask())
    threads.end()
    assert order == [2, 2, 2, 2, 2, 3]
