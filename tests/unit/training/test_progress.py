"""What a run's use of its devices counts: operations of the model, and nothing else."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from align.model.dual_encoder import DualEncoder
from align.training import progress as progress_module
from align.training.batches.phases import Stretch
from align.training.progress import Progress, count_operations
from tests.support.training_data import MODEL, pretrain_config


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


def test_speed_is_that_of_the_present_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps at small pictures are faster; what is left, and the share of the peak, are of those at the present size."""
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    small, large = (Stretch(end, px, None, None) for end, px in ((4, 32), (8, 64)))  # type: ignore[arg-type]
    progress = Progress(pretrain_config(num_steps=8, batch_size=10), 0)
    for step in range(1, 9):
        progress.at(small if step <= 4 else large, step - 1)
        now += 1.0 if step <= 4 else 5.0
        progress.show(step, 1.0, 0.1, 0.01)
        assert progress.present_pairs_per_s() == pytest.approx(10.0 if step <= 4 else 2.0)
    assert progress.pairs_per_s() == pytest.approx(80 / 24)
    late = Progress(pretrain_config(num_steps=8, batch_size=10), 0)  # values of a step come with the next one
    late.at(small, 0)
    now += 2.0
    late.at(large, 1)
    late.show(1, 1.0, 0.1, 0.01)
    assert late.present_pairs_per_s() == pytest.approx(5.0)
    now += 5.0
    late.show(2, 1.0, 0.1, 0.01)
    assert late.present_pairs_per_s() == pytest.approx(2.0)
