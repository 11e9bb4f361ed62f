"""Queries that wait together are embedded together; each gets its own answer, or its own error."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from align.search.service.batching import Batcher, Work
from align.search.service.served import Served
from align.search.service.turns import BusyError, Threads, Turns
from tests.support.served import ColourEmbedder, served


class Slow(ColourEmbedder):
    """Waits with its first batch until it is let go."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def embed_texts(self, texts):
        rows = super().embed_texts(texts)
        self.begun.set()
        assert self.go.wait(100)
        return rows


def pair(world, embedder):
    return Served(served(world).release, embedder, served(world).index)


def first_row(texts, images):
    return [float(value) for value in texts[0]]


async def all_at_once(batcher, embedder, works):
    """The first occupies the thread while the others come."""
    tasks = [asyncio.create_task(batcher.do(works[0]))]
    await asyncio.to_thread(embedder.begun.wait, 100)
    tasks += [asyncio.create_task(batcher.do(work)) for work in works[1:]]
    await asyncio.sleep(0.05)
    embedder.go.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def of_texts(one, texts):
    return [Work(one, [text], [], first_row) for text in texts]


def test_what_waits_is_one_forward_pass_and_equal_texts_are_one_input(world):
    embedder = Slow()
    batcher = Batcher(max_batch=64, max_waiting=64, cached_texts=0)
    texts = ["red", *["green", "blue"] * 10]
    rows = asyncio.run(all_at_once(batcher, embedder, of_texts(pair(world, embedder), texts)))
    batcher.stop()
    assert embedder.batches == [1, 2]
    expected = {
        text: row.tolist()
        for text, row in zip(
            ("red", "green", "blue"), ColourEmbedder().embed_texts(["red", "green", "blue"]), strict=True
        )
    }
    assert rows == [pytest.approx(expected[text]) for text in texts]


def test_a_batch_is_bounded_and_a_full_queue_refuses(world):
    embedder = Slow()
    batcher = Batcher(max_batch=2, max_waiting=3, cached_texts=0)
    works = of_texts(pair(world, embedder), ["red", "a", "b", "c", "d", "e"])
    rows = asyncio.run(all_at_once(batcher, embedder, works))
    batcher.stop()
    assert embedder.batches == [1, 2, 1]
    assert [type(row) for row in rows] == [list, list, list, list, BusyError, BusyError]


def test_a_batch_takes_one_request_of_each_client_in_turn_and_answers_texts_first(world):
    embedder = Slow()
    one, crop, done = pair(world, embedder), np.zeros((48, 48, 3), np.uint8), []
    batcher = Batcher(max_batch=64, max_waiting=64, cached_texts=0)

    def work(name, client, texts, num_crops):
        return Work(one, texts, [crop] * num_crops, lambda *rows: done.append(name), client)

    of_a = [work(f"a{number}", "a", [], 60) for number in range(3)]
    works = [work("first", "a", ["red"], 0), *of_a, work("b", "b", ["blue"], 0)]
    asyncio.run(all_at_once(batcher, embedder, works))
    batcher.stop()
    assert done == ["first", "b", "a0", "a1", "a2"] and batcher.counts.num_passes == 4


def test_an_error_is_of_its_request_alone(world):
    embedder = Slow()
    batcher = Batcher(max_batch=64, max_waiting=64, cached_texts=0)

    def wrong(texts, images):
        raise ValueError("mine")

    first, broken, last = of_texts(pair(world, embedder), ["red", "a", "b"])
    rows = asyncio.run(all_at_once(batcher, embedder, [first, replace(broken, finish=wrong), last]))
    batcher.stop()
    assert [type(row) for row in rows] == [list, ValueError, list]


def test_a_broken_model_fails_its_batch_and_the_thread_lives_on(world):
    class Broken(ColourEmbedder):
        def embed_texts(self, texts):
            raise RuntimeError("no memory")

    batcher = Batcher(max_batch=4, max_waiting=4, cached_texts=0)
    broken, sound = pair(world, Broken()), served(world)
    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(batcher.do(Work(broken, ["red"], [], first_row)))
    assert asyncio.run(batcher.do(Work(sound, ["red"], [], first_row)))
    batcher.stop()


def test_texts_are_remembered_for_their_model_only(world):
    one, other = served(world), served(world)
    batcher = Batcher(max_batch=4, max_waiting=4, cached_texts=2)

    def ask(which, text):
        asyncio.run(batcher.do(Work(which, [text], [], first_row)))

    for text in ("red", "red", "blue", "red", "green", "red", "blue"):  # blue is forgotten for green
        ask(one, text)
    assert one.embedder.batches == [1] * 4 and batcher.counts.num_remembered == 3
    ask(other, "red")
    assert other.embedder.batches == [1]
    batcher.stop()


def test_whoever_left_costs_nothing(world):
    embedder = Slow()
    one = pair(world, embedder)
    batcher = Batcher(max_batch=64, max_waiting=64, cached_texts=0)

    async def run():
        first = asyncio.create_task(batcher.do(Work(one, ["red"], [], first_row)))
        await asyncio.to_thread(embedder.begun.wait, 100)
        left = asyncio.create_task(batcher.do(Work(one, ["blue"], [], first_row)))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        embedder.go.set()
        await first

    asyncio.run(run())
    batcher.stop()
    assert sum(embedder.batches) == 1


def taken(turns):
    items = ""
    while (one := turns.take(wait=False)) is not None:
        items += one[1]
        turns.done(one[0])
    return items


def test_each_client_in_turn_and_its_own_in_order():
    turns = Turns(100)
    for item in "abcde":
        turns.put("one", item)
    turns.put("two", "X")
    turns.put("three", "1")
    turns.put("three", "2")
    assert len(turns) == 8 and taken(turns) == "aX1b2cde" and len(turns) == 0


def test_where_there_is_no_room_the_client_with_the_most_comes_again():
    turns = Turns(4)
    assert [turns.put("one", item) for item in "abcde"] == [None] * 4 + ["e"]
    assert [turns.put("two", item) for item in "XYZ"] == ["d", "c", "Z"]
    assert turns.put("three", "1") == "b" and taken(turns) == "aX1Y"


def test_one_client_never_has_all_threads():
    turns = Turns(100, max_of_client=2)
    for item in "abc":
        turns.put("one", item)
    assert [turns.take(wait=False) for _ in range(3)] == [("one", "a"), ("one", "b"), None]
    turns.put("two", "X")
    assert turns.take(wait=False) == ("two", "X") and turns.take(wait=False) is None
    turns.done("one")
    assert turns.take(wait=False) == ("one", "c")


def test_threads_answer_the_others_while_one_client_keeps_what_it_may():
    go, order = threading.Event(), []
    threads = Threads("test", 3, max_waiting=20, max_of_client=2)

    async def ask():
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
