"""Queries that wait together are embedded together; each gets its own answer, or its own error."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from align.search.service.model_queue import BusyError, ModelQueue, Work
from align.search.service.served import Served
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


async def all_at_once(model, embedder, works):
    """The first occupies the thread while the others come."""
    tasks = [asyncio.create_task(model.do(works[0]))]
    await asyncio.to_thread(embedder.begun.wait, 100)
    tasks += [asyncio.create_task(model.do(work)) for work in works[1:]]
    await asyncio.sleep(0.05)
    embedder.go.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def of_texts(one, texts):
    return [Work(one, [text], [], first_row) for text in texts]


def test_what_waits_is_one_forward_pass_and_equal_texts_are_one_input(world):
    embedder = Slow()
    model = ModelQueue(max_batch=64, max_waiting=64, cached_texts=0)
    texts = ["red", *["green", "blue"] * 10]
    rows = asyncio.run(all_at_once(model, embedder, of_texts(pair(world, embedder), texts)))
    model.stop()
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
    model = ModelQueue(max_batch=2, max_waiting=3, cached_texts=0)
    works = of_texts(pair(world, embedder), ["red", "a", "b", "c", "d", "e"])
    rows = asyncio.run(all_at_once(model, embedder, works))
    model.stop()
    assert embedder.batches == [1, 2, 1]
    assert [type(row) for row in rows] == [list, list, list, list, BusyError, BusyError]


def test_texts_are_answered_before_the_pictures_of_their_batch(world):
    embedder = Slow()
    one, crop, done = pair(world, embedder), np.zeros((48, 48, 3), np.uint8), []
    model = ModelQueue(max_batch=64, max_waiting=64, cached_texts=0)

    def work(name, texts, num_crops):
        return Work(one, texts, [crop] * num_crops, lambda *rows: done.append((name, *map(len, rows))))

    works = [work("first", ["red"], 0), work("a", [], 30), work("b", ["red"], 30), work("c", ["blue"], 0)]
    asyncio.run(all_at_once(model, embedder, works))
    model.stop()
    assert done == [("first", 1, 0), ("c", 1, 0), ("a", 0, 30), ("b", 1, 30)] and model.num_passes == 4


def test_an_error_is_of_its_request_alone(world):
    embedder = Slow()
    model = ModelQueue(max_batch=64, max_waiting=64, cached_texts=0)

    def wrong(texts, images):
        raise ValueError("mine")

    first, broken, last = of_texts(pair(world, embedder), ["red", "a", "b"])
    rows = asyncio.run(all_at_once(model, embedder, [first, replace(broken, finish=wrong), last]))
    model.stop()
    assert [type(row) for row in rows] == [list, ValueError, list]


def test_a_broken_model_fails_its_batch_and_the_thread_lives_on(world):
    class Broken(ColourEmbedder):
        def embed_texts(self, texts):
            raise RuntimeError("no memory")

    model = ModelQueue(max_batch=4, max_waiting=4, cached_texts=0)
    broken, sound = pair(world, Broken()), served(world)
    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(model.do(Work(broken, ["red"], [], first_row)))
    assert asyncio.run(model.do(Work(sound, ["red"], [], first_row)))
    model.stop()


def test_texts_are_remembered_for_their_model_only(world):
    one, other = served(world), served(world, "2" * 64)
    model = ModelQueue(max_batch=4, max_waiting=4, cached_texts=2)

    def ask(which, text):
        asyncio.run(model.do(Work(which, [text], [], first_row)))

    for text in ("red", "red", "blue", "red", "green", "red", "blue"):  # blue is forgotten for green
        ask(one, text)
    assert one.embedder.batches == [1] * 4 and model.num_remembered == 3
    ask(other, "red")
    assert other.embedder.batches == [1]
    model.stop()


def test_whoever_left_costs_nothing(world):
    embedder = Slow()
    one = pair(world, embedder)
    model = ModelQueue(max_batch=64, max_waiting=64, cached_texts=0)

    async def run():
        first = asyncio.create_task(model.do(Work(one, ["red"], [], first_row)))
        await asyncio.to_thread(embedder.begun.wait, 100)
        left = asyncio.create_task(model.do(Work(one, ["blue"], [], first_row)))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        embedder.go.set()
        await first

    asyncio.run(run())
    model.stop()
    assert sum(embedder.batches) == 1
