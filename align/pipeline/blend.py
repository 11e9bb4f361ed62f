"""blend: models between two of one shape (WiSE-FT: Wortsman et al., CVPR 2022, arXiv 2109.01903).

Weights are interpolated, (1 - alpha) A + alpha B; batch-norm's statistics, of which no mean makes sense, are estimated
again from training pictures. With A a model and B what fine-tuning made of it, some alpha keeps what A knew and has
most of what B learned. One alpha writes that model; several measure each on both suites, and draw them in one plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.figure import INK, png
from align.durable import files
from align.errors import DataError
from align.evaluate.embed import ModelTowers, kept_in
from align.evaluate.evaluate import SuiteNeeds, described, evaluate
from align.formats.evaluation_sets.named import named_sets
from align.formats.measured_sets import shards_test_set
from align.formats.model_folder import TOKENIZER, copy_tokenizer, read_config, tokenizer_of, weights_digest
from align.model.dual_encoder import load_model, save_model
from align.services.dvc.outs import require_no_out
from align.services.files.files import StoreFiles
from align.services.s3.store import fetcher, tar_reader
from align.training.checkpointed import estimate_from_shards

#: What stands for a set in its suite's mean, the first that it has.
_MAIN = ("mean_recall", "zero_shot/accuracy")
#: Of a recipe, so that a fine-tuned model may differ in them from the one that it began with.
_OF_RECIPE = {"image_px", "resize_px", "stochastic_depth"}


def blend(models: Sequence[Path], alpha: float, out: Path, *, shards: Path, store: StoreConfig) -> None:
    """Writes a model folder; at 0 and 1 with the weights of A or B as they are, statistics included.

    Args:
        models: the folders A and B; the picture size is B's.
        alpha: the share of B.
        out: an existing folder.
        shards: whose training pictures the statistics are of; `store` has tars that are not there.
        store: see `shards`.

    Raises:
        DataError: they have other shapes or tokenizers, or the shards have smaller pictures than the model.
    """
    a, b = (read_config(folder) for folder in models)
    ours, theirs = (one.model.model_dump(exclude=_OF_RECIPE) | {"vocab_size": one.vocab_size} for one in (a, b))
    if wrong := [key for key, value in ours.items() if theirs[key] != value]:
        raise DataError(f"{models[1]} and {models[0]}: their {', '.join(wrong)} differ; only equal shapes are blended")
    if len({files.sha256_file(tokenizer_of(folder) / TOKENIZER) for folder in models}) > 1:
        raise DataError(f"{models[1]}: its tokenizer is not that of {models[0]}")
    model, other = load_model(models[0], b.model), load_model(models[1]).state_dict()
    images = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vision_model.")}
    moved = any(not torch.equal(tensor, other[name]) for name, tensor in images.items())  # not if it was locked
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.lerp(tensor, other[name], alpha) if tensor.is_floating_point() else other[name])
    if 0 < alpha < 1 and moved and any(name.endswith("running_var") for name in images):
        estimate_from_shards(model, shards, tar_reader(store))
    known = a.trained_on is not None and b.trained_on is not None
    trained_on = tuple(dict.fromkeys((*(a.trained_on or ()), *(b.trained_on or ())))) if known else None
    chosen: dict[str, str | int | float] = {"alpha": alpha, "of": " ".join(map(weights_digest, models))}
    not_gated = tuple(dict.fromkeys((*a.not_gated, *b.not_gated)))
    save_model(
        model, out, stage="blend", imported=a.imported or b.imported, trained_on=trained_on, not_gated=not_gated,
        chosen=chosen,
    )  # fmt: skip
    copy_tokenizer(tokenizer_of(models[0]), out)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align blend`."""
    paths, store, config = params.section(PathsConfig), params.section(StoreConfig), params.section(EvaluateConfig)
    models = args.a, args.b
    files.require_apart(args.out, *models)
    files.require_replaceable(args.out, "blend")
    require_no_out("--out", args.out)
    with files.replace_directory(args.out, "blend") as part:
        if len(args.alpha) == 1:
            blend(models, args.alpha[0], part, shards=paths.shards, store=store)
            return
        reads = StoreFiles(store)
        suites = {str(suite): named_sets(suite, reads) for suite in args.suites or [paths.evaluation]}
        if not args.suites:
            suites["the test split"] = shards_test_set(paths.shards, config.max_test_images, fetcher(store))
        if not all(suites.values()):
            raise DataError(f"blend: no set in {' or '.join(name for name, sets in suites.items() if not sets)}")
        rows: list[tuple[float, ...]] = []
        for alpha in args.alpha:
            with TemporaryDirectory(prefix="align-") as scratch:
                blend(models, alpha, Path(scratch), shards=paths.shards, store=store)
                towers = ModelTowers(Path(scratch), config.image_px)
                metrics = evaluate(
                    config, encoder=towers, sets=[one for sets in suites.values() for one in sets],
                    reports=part / f"{alpha:g}", model=described(Path(scratch), f"{alpha:g} of {args.b}"),
                    kept=kept_in(store.features, towers),
                    suite=SuiteNeeds(reads, Path(scratch)),
                ).metrics  # fmt: skip
            means = []
            for sets in suites.values():
                names = [[f"{one.name}/{end}" for end in _MAIN] for one in sets]
                means.append(sum(next(metrics[name] for name in each if name in metrics) for each in names) / len(sets))
            rows.append((alpha, *means))
            said = (f"{name} {mean:.1%}" for name, mean in zip(suites, means, strict=True))
            say(f"blend: {alpha:g} of {args.b}: {', '.join(said)}")
        files.write_text(part / "blend.json", files.to_json({"columns": ["alpha", *suites], "rows": rows}))
        files.write_bytes(part / "blend.png", _plot(rows, [*suites]))


def _plot(rows: Sequence[tuple[float, ...]], suites: Sequence[str]) -> bytes:
    """What the model knew to the right, what it learned upwards, a point for each alpha."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([100 * across for _, across, _ in rows], [100 * up for *_, up in rows], "o-", color=INK)
    for alpha, across, up in rows:
        axes.annotate(f"{alpha:g}", (100 * across, 100 * up), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel(f"{suites[0]}, mean of its sets, %", parse_math=False)
    axes.set_ylabel(f"{suites[1]}, mean of its sets, %", parse_math=False)
    axes.margins(0.1)
    for low_high, bound in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        bound(low_high[0] - 1, low_high[1] + 1)  # a point around it, so that noise looks like noise
    axes.set_title("share of B in the weights")
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
