"""What a run's use of its devices counts: operations of the model, and nothing else."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from align.model.dual_encoder import DualEncoder
from align.training.progress import count_operations
from tests.support.training_data import MODEL


@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_operations_are_those_of_the_towers_at_the_text_s_length(num_tokens: int) -> None:
    """Written out for a text; counted on real tensors for an image."""
    operations = count_operations(MODEL, 100)
    width, layers = MODEL.text_tower.width, MODEL.text_tower.layers
    dense = 4 * width * width + 2 * width * 4 * width  # query, key, value, output, and the two of the feed-forward part
    attention = 2 * num_tokens * width  # scores, and their sum over values
    a_text = 2 * (layers * num_tokens * (dense + attention) + width * MODEL.embed_width)
    assert operations.text(num_tokens) == a_text
    model = DualEncoder(MODEL, 100).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, MODEL.image_px, MODEL.image_px))
    assert operations.image == counter.get_total_flops() > 0
