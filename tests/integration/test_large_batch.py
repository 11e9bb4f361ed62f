"""The paper's batch, 16,384 pairs, on one machine: the loss is over all pairs, the towers run on a few at a time."""

import pytest

from align.training.train import run
from tests.support import training_data
from tests.support.own_process import in_process
from tests.support.training_data import plan, pretrain_config

BATCH, MICRO_BATCH = 16_384, 64
#: The size of one matrix of the batch's similarities; most of the peak is torch and transformers.
MOST_BYTES = BATCH**2 * 4


def train(shards, tokenizer, checkpoints):
    recipe = pretrain_config(
        batch_size=BATCH, micro_batch=MICRO_BATCH, num_steps=2, warmup_steps=1, log_every_steps=1,
        validate_every_steps=100, checkpoint_every_steps=100,
    )  # fmt: skip
    trained = run(plan((shards, tokenizer), checkpoints, recipe))
    assert trained is not None and [row["step"] for row in trained.rows] == [1, 2]
    # 16,384 pairs of 16 pictures can be told apart by chance only: 2 log N, plus the share of smoothing
    assert 15.0 < trained.rows[0]["train/loss"] < 25.0


@pytest.mark.numerics
@pytest.mark.timeout(900)  # the towers pass 16,384 pairs twice
def test_the_papers_batch_trains_in_little_memory(tmp_path):
    shards, tokenizer = training_data.write(tmp_path, num_train=BATCH)
    _, peak = in_process(train, shards, tokenizer, tmp_path / "checkpoints")
    print(f"peak memory of {BATCH:,} pairs: {peak >> 20:,} MiB")
    assert peak < MOST_BYTES
