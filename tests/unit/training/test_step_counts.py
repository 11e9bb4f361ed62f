"""What a step sends between eight ranks on two machines, counted without a network."""

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
    assert set(whole.messages) == {"all"} and parts.messages == whole.messages  # gradients once, embeddings once


def test_machines_exchange_gradients_once_a_step(world: World) -> None:
    """However many parts; within a machine each part costs messages, of half the bytes in bfloat16."""
    whole, parts, half = (
        count(world, shard_weights="node", micro_batch=micro_batch, gather_precision=precision)
        for micro_batch, precision in ((None, "float32"), (SHARE // 4, "float32"), (None, "bfloat16"))
    )
    assert parts.messages["between"] == whole.messages["between"] > 0
    assert parts.messages["within"] > 3 * whole.messages["within"]
    assert half.messages == whole.messages
    assert half.sent_bytes["within"] < 0.75 * whole.sent_bytes["within"]  # gradients stay in float32
    assert not parts.asked
