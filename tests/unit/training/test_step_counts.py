"""What a step sends between eight ranks, counted without a network."""

from dataclasses import replace

import pytest

from benchmarks.step_counts import SHARE, count
from benchmarks.world import World
from tests.support import training_data
from tests.support.params import load_params
from tests.support.training_data import MODEL


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    training_data.write(root)
    params = load_params()
    return World(root, replace(params, values=params.values | {"model": MODEL.model_dump(mode="json")}))


def test_a_step_asks_nothing_and_sends_what_it_must(world: World) -> None:
    whole, parts = (count(world, micro_batch=micro_batch) for micro_batch in (None, SHARE // 4))
    assert not whole.asked and not parts.asked
    assert parts.messages == whole.messages > 0  # gradients once, embeddings once


def test_each_part_of_a_step_fetches_sharded_weights(world: World) -> None:
    whole, parts = (count(world, shard_weights=True, micro_batch=each) for each in (None, SHARE // 4))
    assert parts.messages > 3 * whole.messages and not parts.asked
