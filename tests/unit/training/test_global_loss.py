"""The global contrastive loss against loops over pairs and finite differences, on ranks, and in whole runs."""

import functools
import math

import pytest
import torch
from torch.nn import functional as F

from align.errors import ConfigError, StoppedError
from align.training.global_loss import global_loss, new_estimates
from align.training.ranks.process_group import launch
from align.training.train import run
from tests.support.rank_runs import last
from tests.support.training_data import MODEL, TermAt, assert_same, finetune_config, plan, pretrain_config

COUNT, WIDTH, STEP = 6, 5, 1e-5
CPU = torch.device("cpu")
#: Of 8 samples; 1 to 4 are in the first two batches, 4 and 5 in all.
BATCHES = [[0, 1, 2, 3, 4, 5], [7, 5, 4, 3, 2, 1], [0, 6, 7, 5, 4, 0]]
CASES = [
    {"global_gamma": 0.2},
    {"global_gamma": 1.0, "label_smoothing": 0.0, "global_rho": 0.5},
    {"global_gamma": 0.7, "label_smoothing": 0.0, "global_eps": 1e-14},
]


def recipe_of(**changes):
    return pretrain_config(loss="global", **changes)


def embeds(seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64), dim=-1)


def means(images, texts, temperature):
    """g of each image, then of each text."""

    def score(i, j):
        return float(images[i] @ texts[j])

    found = ([], [])
    for i in range(COUNT):
        others = [j for j in range(COUNT) if j != i]
        found[0].append(sum(math.exp((score(i, j) - score(i, i)) / temperature) for j in others) / len(others))
        found[1].append(sum(math.exp((score(j, i) - score(i, i)) / temperature) for j in others) / len(others))
    return found


def smoothed(images, texts, recipe):
    pairs = [(i, j) for i in range(COUNT) for j in range(COUNT)]
    gaps = [float(images[i] @ texts[i]) - float(images[i] @ texts[j]) for i, j in pairs]
    return recipe.label_smoothing * 2 * sum(gaps) / len(gaps)


def derivative(function, at, index=()):
    moved = [at.clone(), at.clone()]
    for sign, each in zip((1, -1), moved, strict=True):
        each[index] += sign * STEP
    return (function(moved[0]) - function(moved[1])) / (2 * STEP)


@pytest.mark.parametrize("changes", CASES)
def test_equals_the_definition_through_several_batches(changes):
    recipe, temperature, known = recipe_of(**changes), 0.3, ({}, {})
    estimates = new_estimates(recipe, 8, CPU)
    assert estimates is not None
    for seed, batch in enumerate(BATCHES[:2]):
        images, texts = embeds(2 * seed), embeds(2 * seed + 1)
        used = ([], [])
        for way, found in enumerate(means(images, texts, temperature)):
            for number, mean in zip(batch, found, strict=True):
                gamma = recipe.global_gamma if number in known[way] else 1.0
                known[way][number] = (1 - gamma) * known[way].get(number, 0.0) + gamma * mean
                used[way].append(known[way][number])

        def weighted(some_images, some_texts, some_temperature, used=used):
            """Of which the gradient of weights is, but for a factor T: estimates do not follow."""
            total = 0.0
            for of_way, estimated in zip(means(some_images, some_texts, some_temperature), used, strict=True):
                total += sum(g / (recipe.global_eps + u) for g, u in zip(of_way, estimated, strict=True)) / COUNT
            return total

        def objective(some_images, some_texts, weighted=weighted):
            return temperature * weighted(some_images, some_texts, temperature) + smoothed(
                some_images, some_texts, recipe
            )

        logs = sum(math.log(recipe.global_eps + u) for of_way in used for u in of_way) / COUNT + 2 * recipe.global_rho
        leaves = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        scale = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        loss = global_loss(leaves[0], leaves[1], scale, torch.tensor(batch), estimates, recipe)
        grads = torch.autograd.grad(loss, [*leaves, scale])
        assert float(loss.detach()) == pytest.approx(temperature * logs + smoothed(images, texts, recipe), rel=1e-10)
        for index in ((i, k) for i in range(COUNT) for k in range(WIDTH)):
            mine = [float(grad[index]) for grad in grads[:2]]
            theirs = [
                derivative(lambda moved: objective(moved, texts), images, index),  # noqa: B023 - used at once
                derivative(lambda moved: objective(images, moved), texts, index),  # noqa: B023 - used at once
            ]
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7)
        with_temperature = functools.partial(weighted, images, texts)
        of_temperature = derivative(with_temperature, torch.tensor(temperature, dtype=torch.float64))
        assert float(grads[2]) == pytest.approx(logs + temperature * of_temperature, rel=1e-6)
        for way in range(2):
            for number in range(8):
                expected = math.log(known[way][number]) if number in known[way] else -math.inf
                assert float(estimates[number, way]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 1.0])
@pytest.mark.parametrize("epsilon", [1e-14, 2e-4])
def test_no_temperature_makes_it_overflow(temperature, epsilon):
    recipe = recipe_of(global_eps=epsilon)
    estimates = new_estimates(recipe, COUNT, CPU)
    assert estimates is not None
    for sign in (-1, 1):  # every pair is the worst of its batch, then the best
        images = embeds(1).float().requires_grad_()
        scale = torch.tensor(temperature, requires_grad=True)
        loss = global_loss(images, sign * images.detach(), scale, torch.arange(COUNT), estimates, recipe)
        loss.backward()
        assert loss.dtype == torch.float32 and images.grad is not None and scale.grad is not None
        assert all(bool(each.isfinite().all()) for each in (loss, images.grad, scale.grad, estimates))


def of_batches(recipe, ranks=None):
    """Losses and gradients of rows and temperature for three batches, then the estimates."""
    found, estimates = [], new_estimates(recipe, 8, CPU)
    share = slice(0, COUNT)
    if ranks is not None:
        share = slice(ranks.rank * COUNT // ranks.world_size, (ranks.rank + 1) * COUNT // ranks.world_size)
    for seed, batch in enumerate(BATCHES):
        leaves = [each[share].clone().requires_grad_() for each in (embeds(2 * seed), embeds(2 * seed + 1))]
        scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        loss = global_loss(leaves[0], leaves[1], scale, torch.tensor(batch)[share], estimates, recipe, peers=ranks)
        found.append([loss.detach(), *torch.autograd.grad(loss, [*leaves, scale])])
    return found, estimates


def _save(path, ranks):
    torch.save(of_batches(recipe_of(), ranks), path / f"{ranks.rank}.pt")


def test_ranks_have_exact_gradients_of_their_rows_and_the_same_estimates(tmp_path):
    launch(functools.partial(_save, tmp_path), 2, 1)
    (one, estimates), (other, same) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole, theirs = of_batches(recipe_of())
    assert torch.equal(estimates, same)
    torch.testing.assert_close(estimates, theirs)
    for first, second, alone in zip(one, other, whole, strict=True):
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(first[0], alone[0])
        for index in (1, 2):
            torch.testing.assert_close(torch.cat([first[index], second[index]]), alone[index])
        torch.testing.assert_close(first[3] + second[3], alone[3])


#: The rate is small: rounding grows with it.
RUN = {"num_steps": 7, "learning_rate": 0.005, "log_every_steps": 1, "checkpoint_every_steps": 2}


@pytest.mark.parametrize("changes", [{}, {"num_processes": 2}, {"learn_temperature": False, "micro_batch": 4}])
def test_interrupted_and_resumed_equals_uninterrupted(data, tmp_path, changes):
    """Three steps are an epoch of 24 samples, so estimates of other steps are used."""
    recipe = recipe_of(**(RUN | changes))
    whole = run(plan(data, tmp_path / "whole", recipe))
    with pytest.raises(StoppedError):
        run(plan(data, tmp_path / "parts", recipe, log=TermAt(4)))
    assert_same(run(plan(data, tmp_path / "parts", recipe)), whole)
    parts, undisturbed = (last(tmp_path, name)["estimates"] for name in ("parts", "whole"))
    assert torch.equal(parts, undisturbed) and bool(parts.isfinite().all()) and parts.shape == (24, 2)
    temperatures = {row["train/temperature"] for row in whole.rows}
    assert len(temperatures) == (7 if recipe.learn_temperature else 1)
    run(plan(data, tmp_path / "one", recipe_of(**RUN | {"learn_temperature": recipe.learn_temperature})))
    alone = last(tmp_path, "one")
    assert [row["train/loss"] for row in whole.rows] == pytest.approx(
        [row["train/loss"] for row in alone["rows"]], rel=2e-3
    )
    torch.testing.assert_close(undisturbed, alone["estimates"], rtol=0, atol=0.1)


def test_learns_what_the_pictures_are_called(data, tmp_path):
    model = MODEL.model_copy(update={"stochastic_depth": 0.0, "batch_norm_group": 16, "temperature_init": 0.5})
    recipe = recipe_of(num_steps=30, batch_size=16, warmup_steps=5, validate_every_steps=30, global_rho=1.0)
    trained = run(plan(data, tmp_path, recipe, model=model))
    assert trained.rows[-1]["val/image_to_text/recall@1"] >= 0.375  # chance 0.125


def test_fine_tuning_uses_the_loss_of_align(data):
    assert new_estimates(finetune_config(loss="global"), 4, CPU) is None
    assert new_estimates(pretrain_config(), 4, CPU) is None


def test_what_it_does_not_go_with(data, tmp_path):
    with pytest.raises(ConfigError, match=r"negatives_share 0\.5 is of loss align; the global loss needs 1"):
        run(plan(data, tmp_path, recipe_of(negatives_share=0.5)))
    more = [{"path": data[0], "digest": "a", "weight": 1.0}]
    model = MODEL.model_copy(update={"batch_norm_group": 1})
    for changes in ({"batch_size": 1}, {"extra_shards": more}):
        assert "loss global needs a batch_size" in str(recipe_of(**changes).against(model, 1, 1))
