"""The paper's batch, 16,384 pairs, on one machine: the loss sees all of them at once, the towers a few at a time."""

from pathlib import Path

import pytest

from align.training.run import make_plan, run
from benchmarks.measure import in_process
from tests.support import training_data
from tests.support.training_data import MODEL, pretrain_config

BATCH, MICRO_BATCH = 16_384, 64
#: What one matrix of the batch's similarities would take alone; torch and transformers are most of what is taken.
MOST_BYTES = BATCH**2 * 4


def train(shards: Path, tokenizer: Path, checkpoints: Path) -> None:
    recipe = pretrain_config(
        batch_size=BATCH, micro_batch=MICRO_BATCH, num_steps=2, warmup_steps=1, log_every_steps=1,
        validate_every_steps=100, checkpoint_every_steps=100,
    )  # fmt: skip
    trained = run(make_plan(recipe, MODEL, initial=None, shards=shards, tokenizer=tokenizer, checkpoints=checkpoints))
    assert trained is not None and [row["step"] for row in trained.rows] == [1, 2]
    # of so many pairs of 16 pictures each is told from the others by chance: 2 log N, and what smoothing adds
    assert 15.0 < trained.rows[0]["train/loss"] < 25.0


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_papers_batch_trains_in_little_memory(tmp_path: Path) -> None:
    shards, tokenizer = training_data.write(tmp_path, num_train=BATCH)
    _, peak = in_process(train, shards, tokenizer, tmp_path / "checkpoints")
    print(f"peak memory of {BATCH:,} pairs: {peak >> 20:,} MiB")
    assert peak < MOST_BYTES
