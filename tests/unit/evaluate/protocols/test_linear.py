from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import DataError
from align.evaluate.protocols import linear
from align.evaluate.protocols.labelled import UNDECIDED, Labelled, accuracy
from align.evaluate.protocols.linear import (
    CLIP_BENCHMARK,
    DECAYS,
    PAPER,
    SMALL,
    Linear,
    Recipe,
    fit,
    frozen_features,
    linear_probe,
)

QUICK = replace(CLIP_BENCHMARK, epochs=3, batch_size=32)
SEED = {"seed": 0}


def drawn(number: int, seed: int, *, name: str = "train", width: int = 12, classes: int = 4) -> Labelled:
    """Four clusters that overlap."""
    rng = np.random.default_rng([7, seed])
    centres = np.random.default_rng(1).normal(size=(classes, width))
    labels = rng.integers(0, classes, number)
    return Labelled(name, (centres[labels] + rng.normal(size=(number, width))).astype(np.float32), labels)


def by_autograd(train: Labelled, classes: int, recipe: Recipe, decay: float) -> np.ndarray:
    """torch's own layer, loss and optimizer, from the same first weights and on the same batches."""
    generator = torch.Generator().manual_seed(0)
    bound = train.width**-0.5
    first = torch.empty(classes, train.width + 1).uniform_(-bound, bound, generator=generator)
    layer = torch.nn.Linear(train.width, classes)
    layer.load_state_dict({"weight": first[:, :-1], "bias": first[:, -1]})
    if recipe.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    features = torch.from_numpy(train.features)
    if recipe.unit_rows:
        features = torch.nn.functional.normalize(features)
    per_epoch = -(-len(train) // recipe.batch_size)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train), generator=generator)
        for number, which in enumerate(order.split(recipe.batch_size)):
            optimizer.param_groups[0]["lr"] = recipe.rate(epoch * per_epoch + number, per_epoch)
            optimizer.zero_grad()
            torch.nn.CrossEntropyLoss()(layer(features[which]), torch.from_numpy(train.labels)[which]).backward()
            optimizer.step()
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().numpy()


@pytest.mark.parametrize(
    ("recipe", "decay"),
    [(QUICK, 0.0), (QUICK, 0.5), (replace(PAPER, epochs=3, batch_size=32), 0.0)],
)
def test_a_fit_is_that_of_torch(recipe: Recipe, decay: float) -> None:
    train = drawn(150, 0)
    (ours,) = fit(train, 4, recipe, decays=[decay], **SEED)
    assert ours.weights == pytest.approx(by_autograd(train, 4, recipe, decay), abs=1e-4)


def test_decays_that_are_fitted_together_are_those_fitted_alone() -> None:
    train, decays = drawn(150, 0), [1e-3, 1.0, 5.0]
    for decay, together in zip(decays, fit(train, 4, QUICK, decays=decays, **SEED), strict=True):
        (alone,) = fit(train, 4, QUICK, decays=[decay], **SEED)
        assert together.weights == pytest.approx(alone.weights, abs=1e-4)


def test_the_rates_are_those_of_the_papers() -> None:
    assert [PAPER.rate(epoch * 10, 10) for epoch in (0, 29, 30, 60, 99)] == pytest.approx([0.1, 0.1, 0.02, 4e-3, 8e-4])
    assert [CLIP_BENCHMARK.rate(step, 7) for step in (0, 35, 70)] == pytest.approx([0.1, 0.05, 0.0])


@pytest.mark.parametrize("recipe", [QUICK, SMALL])
def test_equal_seeds_give_equal_bytes(recipe: Recipe) -> None:
    train = drawn(150, 0)
    first, again, other = (fit(train, 4, recipe, seed=seed)[0].weights.tobytes() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_search_narrows_down_to_the_best_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for fitting whose accuracy on validation has its peak at decay 53."""
    validation = drawn(97, 1, name="validation")
    asked: list[list[int]] = []

    class Known(Linear):
        def answers(self, test: Labelled) -> np.ndarray:
            return np.where(np.arange(len(test)) < 97 - abs(int(self.weights[0, 0]) - 53), test.labels, UNDECIDED)

    def fitted(views: object, num_classes: int, recipe: Recipe, *, decays: list[float], seed: int) -> list[Linear]:
        asked.append([DECAYS.index(decay) for decay in decays])
        return [Known(np.full((1, 1), at, dtype=np.float32), unit_rows=True) for at in asked[-1]]

    monkeypatch.setattr(linear, "fit", fitted)
    tried: dict[float, float] = {}
    decay = linear._search(drawn(10, 0), validation, 4, QUICK, 0, tried)
    assert asked == [[0, 16, 32, 48, 64, 80, 96], [40, 56], [52, 60], [50, 54], [51, 53]]
    assert decay == DECAYS[53]
    assert tried[decay] == max(tried.values()) == 1.0


def test_of_equally_good_decays_the_first_is_taken() -> None:
    """Features that tell the classes apart without any error."""
    labels = np.arange(40) % 2
    easy = Labelled("train", np.eye(2, dtype=np.float32)[labels], labels)
    assert linear_probe(easy, easy, easy, 2, seed=0, recipe=QUICK).decay == DECAYS[0]


def test_a_probe_is_fitted_on_both_splits_and_beats_chance(tmp_path: Path) -> None:
    train, validation, test = drawn(300, 0), drawn(100, 1, name="validation"), drawn(400, 2, name="test")
    probe = linear_probe(train, validation, test, 4, seed=0, recipe=QUICK)
    assert probe.decay in probe.tried
    both = train.joined(validation, "both")
    (expected,) = fit(both, 4, QUICK, decays=[probe.decay], seed=0)
    assert probe.answers.tolist() == expected.answers(test).tolist()
    score = accuracy([probe.answers], test, 4, num_resamples=200, seed=0)
    assert score.low > 0.6 > score.chance
    without = linear_probe(train, None, test, 4, seed=0, recipe=QUICK)
    assert (without.decay, without.tried) == (0.0, {})


def test_decays_that_diverge_are_out_of_the_choice() -> None:
    """At 100 the weights are multiplied by -9 in a step."""
    train, validation = drawn(1000, 0), drawn(100, 1)
    assert max(linear_probe(train, validation, validation, 4, seed=0, recipe=QUICK).tried) < 50
    hopeless = replace(QUICK, learning_rate=1e9)
    with pytest.raises(DataError, match="train: the linear probe diverges at every weight decay"):
        linear_probe(train, validation, validation, 4, seed=0, recipe=hopeless)


def test_the_papers_schedule_separates_the_clusters(tmp_path: Path) -> None:
    train, test = drawn(600, 0), drawn(400, 2, name="test")
    np.save(tmp_path / "features.npy", train.features.astype(np.float16))
    mapped = Labelled("train", np.load(tmp_path / "features.npy", mmap_mode="r"), train.labels)
    for known, recipe in ((train, PAPER), (train, SMALL), (mapped, SMALL)):
        assert np.mean(frozen_features(known, test, 4, seed=0, recipe=recipe) == test.labels) > 0.85


def test_equal_logits_are_undecided() -> None:
    classifier = Linear(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), unit_rows=False)
    rows = Labelled("test", np.array([[2, 1], [1, 1], [1, 2]], dtype=np.float32), np.array([0, 0, 0]))
    assert classifier.answers(rows).tolist() == [0, UNDECIDED, 1]


def test_bad_input_is_one_line() -> None:
    train, test = drawn(50, 0), drawn(50, 1, name="test")
    with pytest.raises(DataError, match=r"^train: label 3, but there are 3 classes$"):
        frozen_features(train, test, 3, seed=0, recipe=SMALL)
    with pytest.raises(DataError, match=r"^validation: label 12, but there are 4 classes$"):
        linear_probe(train, Labelled("validation", test.features, test.labels + 9), test, 4, seed=0)
    narrow = Labelled("test", test.features[:, :3], test.labels)
    for call in (frozen_features, lambda train, *rest, **more: linear_probe(train, None, *rest, **more)):
        with pytest.raises(DataError, match="train are 12 wide, those of test 3"):
            call(train, narrow, 4, seed=0)
    with pytest.raises(DataError, match="must be positive"):
        replace(SMALL, epochs=0)
    with pytest.raises(DataError, match="linear classifier diverges"):
        frozen_features(train, test, 4, seed=0, recipe=replace(SMALL, learning_rate=1e38))
    train.features[7, 3] = np.nan
    with pytest.raises(DataError, match=r"^train: features that are NaN or infinite"):
        linear_probe(train, test, test, 4, seed=0)
