"""evaluate: retrieval, zero-shot and nearest-neighbour metrics of the fine-tuned model -> reports/evaluation.

It measures every set of the evaluation folder and, as set `test`, the test split of the shards. That one comes from the
training sources (its clusters are held out): it shows how well the model learned them. The evaluation sets show how
well that transfers.

Languages of queries are told here and not in `align.evaluate.measure`, whose code is in every set's digest: another way
to tell languages changes no rank, so no model has to be measured again for it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.suite import is_suite
from align.display.console import duration, say, show
from align.display.figure import png
from align.display.report import record_runtime, write_report
from align.durable.files import replace_directory, require_replaceable, write_bytes, write_text
from align.errors import ConfigError, DataError
from align.evaluate.captioned import read_ratings
from align.evaluate.embed import ModelTowers, Towers, kept_in
from align.evaluate.examples import DIRECTIONS, RetrievalExamples, draw_classified, draw_examples, same_examples
from align.evaluate.figures import confusion_figure, examples_figure, recall_figure
from align.evaluate.measure import Classification, Retrieval, measure_classification, measure_retrieval
from align.evaluate.page import Shown, evaluation_page
from align.evaluate.protocols.recall import Gallery
from align.evaluate.protocols.retrieval import SIMILARITIES_AT_ONCE
from align.evaluate.report import EvaluateReport, make_report
from align.evaluate.tuned import recipe_for
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.named import named_sets
from align.formats.measured_sets import evaluation_digest, measured_sets, set_digests
from align.formats.model_folder import library_model, model_digest, read_config
from align.formats.query_ranks import IMAGE_TO_TEXT, RANKS, TEXT_TO_IMAGE, QueryRanks, Ranked, read_ranks, write_ranks
from align.formats.shards import MANIFEST
from align.interfaces.store import Files
from align.model.embedder import Crop
from align.pairs.languages import languages
from align.pairs.text import normalise
from align.services.files.files import StoreFiles
from align.services.s3.store import fetcher

#: Bytes of a text in UTF-8. Of shorter ones, which are names and tags, a guess would make a slice of a language that
#: nobody wrote: 26 concepts of the demo's emoji, such as "keycap: 6", would be Danish; from here on four are.
MIN_BYTES = 20

#: Classified pictures on the page for each `evaluate.num_examples`: they are smaller than a query with its answers.
_PER_EXAMPLE = 3


@dataclass(frozen=True)
class SuiteNeeds:
    """What tasks of a suite need besides their sets.

    Attributes:
        files: reads ratings of the sets' pictures and captions.
        model: the folder of the model, for `fine_tuning`.
    """

    files: Files | None = None
    model: Path | None = None


NO_SUITE = SuiteNeeds()


def evaluate(
    config: EvaluateConfig,
    *,
    encoder: Towers,
    sets: Sequence[EvaluationSet],
    reports: Path,
    model: Mapping[str, str] | None = None,
    kept: Path | None = None,
    suite: SuiteNeeds = NO_SUITE,
) -> EvaluateReport:
    """Measures every set and writes the report, its pictures, its page, and the rank of each query.

    Args:
        config: section `evaluate`.
        encoder: the model.
        sets: the sets to measure, in any order. Examples are drawn from the first retrieval set.
        reports: the folder of this stage's report; replaced whole.
        model: which one that is, see `EvaluateReport`; None: the fine-tuned model.
        kept: the folder for embeddings of other runs; None: nothing is kept.
        suite: what its tasks need; of sets that no suite names, nothing.

    Raises:
        DataError: no set, two sets of one name, an empty set, or embeddings that are not finite.
    """
    if not sets:
        raise DataError(
            "evaluate: no evaluation set (NAME.json) and no test split; check paths.evaluation and paths.shards, or "
            "name folders of classes in a suite (`format: folder`, docs/evaluation.md)"
        )
    for name, number in Counter(one.name for one in sets).items():
        if number > 1:
            raise DataError(
                f"evaluate: {number} sets have the name {name!r}; the test split is `test`: give the set in "
                "paths.evaluation another name"
            )
    retrievals, classifications = _measure(config, encoder, sets, kept, suite)
    examples: dict[str, RetrievalExamples] = {}
    for direction in DIRECTIONS if retrievals else ():
        examples[direction] = draw_examples(retrievals[0], direction, number=config.num_examples, seed=config.seed)
    number = _PER_EXAMPLE * config.num_examples
    walls = {result.source.name: draw_classified(result, number=number, seed=config.seed) for result in classifications}
    figures = _draw(config, retrievals, classifications)
    digests = set_digests(sets)
    report = make_report([*retrievals, *classifications], digests, evaluation_digest(digests), model or {})
    measured = [(result.source, with_languages(result.ranked(), result.items)) for result in retrievals]
    measured += [(result.source, result.ranked()) for result in classifications]
    ranks = {(source.name, protocol): part for source, parts in measured for protocol, part in parts.items()}
    with replace_directory(reports, "evaluate") as part:
        for name, figure in figures.items():
            write_bytes(part / name, png(figure))
        shown = Shown(report, retrievals, classifications, examples, walls)
        write_text(part / "report.html", evaluation_page(shown, figures, _called(report.model)))
        write_ranks(QueryRanks(digests, ranks), part / RANKS)
        write_report(report, part)
    return report


def described(folder: Path, name: str | None = None) -> dict[str, str]:
    """A model for its report, see `EvaluateReport`; `name`: of one in a folder for a while. Raises as `read_config`."""
    known = {"folder": name or str(folder), "digest": model_digest(folder)}
    if (library := library_model(folder)) is not None:
        return known | {"library": library}
    config = read_config(folder)
    step = {} if config.chosen is None or "step" not in config.chosen else {"step": str(config.chosen["step"])}
    return known | {"stage": config.stage} | step


def _called(model: Mapping[str, str]) -> str:
    """A model for people, such as `models/pretrained (0123456789ab, step 400)`."""
    if not model:
        return "the fine-tuned model"
    step = f", step {model['step']}" if "step" in model else ""
    return f"{model['folder']} ({model['digest'][:12]}{step})"


def _measure(
    config: EvaluateConfig, encoder: Towers, sets: Sequence[EvaluationSet], kept: Path | None, suite: SuiteNeeds
) -> tuple[list[Retrieval], list[Classification]]:
    retrievals, classifications = [], []
    how: dict[str, Any] = {"num_resamples": config.num_resamples, "seed": config.seed, "kept": kept}
    # all of them first: a wrong file ends this at once
    ratings = [read_ratings(source, suite.files) for source in sets]
    for source, rated in zip(sets, ratings, strict=True):
        say(f"evaluate: {source.name} ({source.kind}), {len(source.images):,} images")
        if source.kind == "retrieval":
            retrievals.append(measure_retrieval(source, encoder, ratings=rated, **how))
        else:
            classifications.append(measure_classification(source, encoder, model=suite.model, **how))
    return retrievals, classifications


def _draw(
    config: EvaluateConfig, retrievals: Sequence[Retrieval], classifications: Sequence[Classification]
) -> dict[str, Figure]:
    """File name -> figure."""
    figures: dict[str, Figure] = {}
    if retrievals:
        figures["recall.png"] = recall_figure({result.source.name: result.scores for result in retrievals})
    for direction in DIRECTIONS if retrievals and config.num_examples else ():
        # answers to the same queries whatever the model, which MLflow shows side by side
        same = same_examples(retrievals[0], direction, number=config.num_examples, seed=config.seed)
        figures[f"same_{direction}.png"] = examples_figure(direction, same)
    for result in classifications:
        figures[f"{result.source.name}_confusion.png"] = confusion_figure(result)
    return figures


@dataclass(frozen=True)
class Measuring:
    """What is measured: a model, by its towers, and sets; and where embeddings are kept."""

    folder: Path
    towers: Towers
    sets: Sequence[EvaluationSet]
    files: Files
    kept: Path | None


def main(params: Params, args: argparse.Namespace) -> None:
    """`align evaluate`."""
    if args.compare is not None:
        _compare(params, args)
    else:
        measured(params, args, measuring(params, args))


def measuring(params: Params, args: argparse.Namespace, *, announces: bool = True) -> Measuring:
    """Reads the model and the sets that a command names. Raises AlignError."""
    config, paths = params.section(EvaluateConfig), params.section(PathsConfig)
    own = paths.reports / "evaluation"
    if args.model is not None and (args.reports is None or args.reports.resolve() == own.resolve()):
        raise ConfigError(
            f"--model, --checkpoint: {own} is about the fine-tuned model; name another folder by --reports"
        )
    store = params.section(StoreConfig)
    alone = args.model is not None and is_suite(paths.evaluation)  # no pipeline has to be around it
    folder = args.model or paths.finetuned
    towers = ModelTowers(folder, config.image_px)
    files = StoreFiles(store)
    if alone:
        sets = named_sets(paths.evaluation, files)
        if announces:
            announce(sets, towers, folder)
    else:
        # another model may be measured where no pipeline has run; then there is no test split
        here = args.model is None or (paths.shards / MANIFEST).is_file()
        number, fetch = config.max_test_images if here else 0, fetcher(store)
        sets = measured_sets(paths.evaluation, paths.shards, number, files, fetch)
    return Measuring(folder, towers, sets, files, kept_in(store.features, towers))


def measured(params: Params, args: argparse.Namespace, what: Measuring) -> None:
    """Measures, and writes the report."""
    config, paths = params.section(EvaluateConfig), params.section(PathsConfig)
    with nullcontext() if args.reports else record_runtime("evaluate", paths.runtime):
        report = evaluate(
            config,
            encoder=what.towers,
            sets=what.sets,
            kept=what.kept,
            suite=SuiteNeeds(what.files, what.folder),
            reports=args.reports or paths.reports / "evaluation",
            model=None
            if args.model is None
            else described(args.model, args.checkpoint and f"checkpoint {args.checkpoint}"),
        )
    for line in report.summary():
        say(f"evaluate: {line}")


def _compare(params: Params, args: argparse.Namespace) -> None:
    """`align evaluate --compare A B --reports DIR`: the comparison; each model's own report is in DIR/a and DIR/b."""
    from align.evaluate.compare import Measured, compare, lines, require_two_models, write_comparison

    config, paths, store = params.section(EvaluateConfig), params.section(PathsConfig), params.section(StoreConfig)
    if args.model is not None:
        raise ConfigError("--compare names both models; leave --model out")
    if args.reports is None or args.reports.resolve() == (paths.reports / "evaluation").resolve():
        raise ConfigError("--compare: name a folder for the comparison by --reports, other than that of the evaluation")
    require_two_models(*args.compare)
    require_replaceable(args.reports, "evaluate")
    files = StoreFiles(store)
    sets = named_sets(paths.evaluation, files)
    if not sets:  # those who have none compare on what the filter and the sharding held out
        number, fetch = config.max_test_images, fetcher(store)
        sets = measured_sets(paths.evaluation, paths.shards, number, files, fetch)
    measured: list[Measured] = []
    with replace_directory(args.reports, "evaluate") as part:
        for folder, name in zip(args.compare, ("a", "b"), strict=True):
            towers = ModelTowers(folder, config.image_px)
            if not measured and is_suite(paths.evaluation):
                announce(sets, towers, folder)
            say(f"evaluate: {name.upper()} is {folder}")
            report = evaluate(
                config,
                encoder=towers,
                sets=sets,
                reports=part / name,
                model=described(folder),
                kept=kept_in(store.features, towers),
                suite=SuiteNeeds(files, folder),
            )
            ranks = read_ranks(part / name / RANKS)
            measured.append(Measured(str(folder), model_digest(folder), report.metrics, ranks))
        compared = compare(*measured, seed=config.seed)
        write_comparison(compared, part)
    show(*lines(compared))


def with_languages(ranked: dict[str, Ranked], items: Gallery) -> dict[str, Ranked]:
    """The ranks of both directions, each query with its language.

    A language is told as `align filter` does, where the text is long enough.

    An image has the language of its right texts, if those whose language can be told agree: its query is answered well
    only if the model knows that language. Images with texts in several languages have none.

    Args:
        ranked: protocol -> the queries that have a right item, in the gallery's order.
        items: the gallery.
    """
    texts = [normalise(text) for text in items.texts]
    long = [len(text.encode()) >= MIN_BYTES for text in texts]
    of_text = [code if is_long else None for code, is_long in zip(languages(texts), long, strict=True)]
    asked = {
        IMAGE_TO_TEXT: [_common([of_text[text] for text in right]) for right in items.texts_of_image if len(right)],
        TEXT_TO_IMAGE: [of_text[text] for text, right in enumerate(items.images_of_text) if len(right)],
    }
    return {name: replace(part, languages=tuple(asked[name])) for name, part in ranked.items()}


def _common(codes: Sequence[str | None]) -> str | None:
    told = {code for code in codes if code is not None}
    return told.pop() if len(told) == 1 else None


#: Pictures that are embedded to tell how long the others take.
_TRIED = 32


def announce(sets: Sequence[EvaluationSet], towers: Towers, model: Path) -> None:
    """Says what an evaluation of a suite will do, and the time and memory that it will take.

    The time is that of the first pictures of the first set, and so a guess.
    """
    texts = {one.name: len(one.texts) for one in sets if one.kind == "retrieval"}
    for one in sets:
        known = sum(image.split == "reference" for image in one.images)
        if one.kind == "retrieval":
            what = f"{len(one.images):,} pictures and {texts[one.name]:,} texts, retrieval"
        else:
            what = f"{len(one.images) - known:,} pictures in {len(one.classes):,} classes, zero-shot"
            what += f"; {known:,} more to learn from" if known else ""
        left_out = f"; {len(one.unusable):,} rows that cannot be used" if one.unusable else ""
        say(f"evaluate: {one.name}: {what}{left_out}")
    pictures = sum(len(one.images) for one in sets)
    seconds, width = _tried(sets, towers)
    more = 8 * width * max((len(one.images) + texts.get(one.name, 0) for one in sets), default=0)
    more += 4 * SIMILARITIES_AT_ONCE
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + more
    say(
        f"evaluate: {pictures:,} pictures take about {duration(seconds * pictures)}, and {peak / 1e9:.1f} GB of "
        "memory; resampling for the intervals is not in it"
    )
    for one in sets:
        if one.asked is not None and "fine_tuning" in one.asked.tasks:
            runs = recipe_for(model, one.asked.fine_tuning).num_runs
            say(f"evaluate: {one.name}: then fine-tuning, {runs} run(s); if it is killed, it begins again")


def _tried(sets: Sequence[EvaluationSet], towers: Towers) -> tuple[float, int]:
    """Seconds a picture, and the width of an embedding."""

    def crops() -> Iterator[Crop]:
        for one in sets:
            for _, picture in one.read(range(min(_TRIED, len(one.images))), fault=lambda position, why: None):
                try:
                    yield towers.crop(picture)
                except DataError:
                    continue

    towers.embed_crops(islice(crops(), 1))  # the first one pays for what is loaded
    started = time.monotonic()
    embeds = towers.embed_crops(islice(crops(), _TRIED))
    return (time.monotonic() - started) / max(len(embeds), 1), embeds.shape[1]
