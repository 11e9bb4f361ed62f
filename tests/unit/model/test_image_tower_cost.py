"""What a step of the image tower costs a GPU, counted on the meta device: nothing is timed."""

import pytest
import torch

from align.config.model import Checkpointing
from align.model.image_tower import ImageTower
from benchmarks.image_tower import cost
from tests.support.training_data import MODEL


@pytest.mark.parametrize(("what", "light"), [("none", 18), ("cheap", 20)])
def test_operations_grow_with_the_blocks_and_not_with_the_groups(what: Checkpointing, light: int) -> None:
    with torch.device("meta"):
        blocks = ImageTower(MODEL).num_blocks
    few, many = (cost(MODEL, what, pairs=groups * MODEL.batch_norm_group) for groups in (1, 8))
    assert few.forward_calls == many.forward_calls <= 12 * blocks + 6
    assert few.light_calls == many.light_calls <= light * blocks + 8


def test_joined_operations_read_and_write_less_than_layers() -> None:
    pairs = 4 * MODEL.batch_norm_group
    joined, apart = (cost(MODEL, "none", apart=each, pairs=pairs) for each in (False, True))
    assert joined.moved_bytes < 0.75 * apart.moved_bytes
    assert joined.forward_calls < 0.6 * apart.forward_calls
