from dataclasses import replace

import numpy as np
import pytest
import torch

from align.errors import DataError
from align.evaluate.protocols.labelled import UNDECIDED, Labelled
from align.evaluate.protocols.linear import PAPER, SMALL, answers, fit, frozen_features

QUICK = replace(PAPER, epochs=3, batch_size=32)


def drawn(number, seed, *, name="train", width=12, classes=4):
    """Four clusters that overlap."""
    rng = np.random.default_rng([7, seed])
    centres = np.random.default_rng(1).normal(size=(classes, width))
    labels = rng.integers(0, classes, number)
    return Labelled(name, (centres[labels] + rng.normal(size=(number, width))).astype(np.float32), labels)


def by_autograd(train, classes, recipe):
    """torch's own layer, loss and optimizer, from the same first weights and on the same batches."""
    generator = torch.Generator().manual_seed(0)
    bound = train.width**-0.5
    first = torch.empty(classes, train.width + 1).uniform_(-bound, bound, generator=generator)
    layer = torch.nn.Linear(train.width, classes)
    layer.load_state_dict({"weight": first[:, :-1], "bias": first[:, -1]})
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    features = torch.from_numpy(train.features)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train), generator=generator)
        for which in order.split(recipe.batch_size):
            optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
            optimizer.zero_grad()
            torch.nn.CrossEntropyLoss()(layer(features[which]), torch.from_numpy(train.labels)[which]).backward()
            optimizer.step()
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().numpy()


def test_a_fit_is_that_of_torch():
    train = drawn(150, 0)
    assert fit(train, 4, QUICK, seed=0) == pytest.approx(by_autograd(train, 4, QUICK), abs=1e-4)


def test_the_rates_are_those_of_the_paper():
    assert [PAPER.rate(epoch) for epoch in (0, 29, 30, 60, 99)] == pytest.approx([0.1, 0.1, 0.02, 4e-3, 8e-4])


def test_equal_seeds_give_equal_bytes():
    train = drawn(150, 0)
    first, again, other = (fit(train, 4, SMALL, seed=seed).tobytes() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_papers_schedule_separates_the_clusters(tmp_path):
    train, test = drawn(600, 0), drawn(400, 2, name="test")
    np.save(tmp_path / "features.npy", train.features.astype(np.float16))
    mapped = Labelled("train", np.load(tmp_path / "features.npy", mmap_mode="r"), train.labels)
    for known, recipe in ((train, PAPER), (train, SMALL), (mapped, SMALL)):
        assert np.mean(frozen_features(known, test, 4, seed=0, recipe=recipe) == test.labels) > 0.85


@pytest.mark.usefixtures("any_blocks")
def test_equal_logits_are_undecided():
    rows = Labelled("test", np.array([[2, 1], [1, 1], [1, 2], [3, 1]] * 2, dtype=np.float32), np.zeros(8, np.int64))
    assert answers(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), rows).tolist() == [0, UNDECIDED, 1, 0] * 2


def test_bad_input_is_one_line():
    train, test = drawn(50, 0), drawn(50, 1, name="test")
    with pytest.raises(DataError, match=r"^train: label 3, but there are 3 classes$"):
        frozen_features(train, test, 3, seed=0, recipe=SMALL)
    narrow = Labelled("test", test.features[:, :3], test.labels)
    with pytest.raises(DataError, match="train are 12 wide, those of test 3"):
        frozen_features(train, narrow, 4, seed=0)
    with pytest.raises(DataError, match="must be positive"):
        replace(SMALL, epochs=0)
    with pytest.raises(DataError, match="linear classifier diverges"):
        frozen_features(train, test, 4, seed=0, recipe=replace(SMALL, learning_rate=1e38))
    train.features[7, 3] = np.nan
    with pytest.raises(DataError, match=r"^train: features that are NaN or infinite"):
        frozen_features(train, test, 4, seed=0)
