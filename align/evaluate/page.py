"""The evaluation report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from align.display import html
from align.display.shares import above_chance, percent
from align.evaluate.examples import DIRECTIONS, ClassifiedExample, RetrievalExample, RetrievalExamples
from align.evaluate.measure import Classification, Retrieval
from align.evaluate.paper_table import RETRIEVAL, STYLE, paper_tables
from align.evaluate.protocols.recall import Score
from align.evaluate.report import EvaluateReport, class_accuracy
from align.formats.measured_sets import TEST
from align.pairs.picture import thumbnail

#: Side of the pictures in the page.
THUMBNAIL_PX = 128
SETS, TABLES = "Evaluation sets", "How to read the tables"


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes:
        report: its metrics are the figures of all tables.
        retrievals, classifications: measured sets.
        examples: direction -> examples of the first retrieval set.
        walls: classification set -> pictures that were answered right, and wrong.
    """

    report: EvaluateReport
    retrievals: Sequence[Retrieval]
    classifications: Sequence[Classification]
    examples: Mapping[str, RetrievalExamples]
    walls: Mapping[str, tuple[list[ClassifiedExample], list[ClassifiedExample]]]


def evaluation_page(shown: Shown, figures: Mapping[str, Figure], model: str) -> str:
    """Returns the HTML of the page.

    Args:
        shown: what was measured.
        figures: by their files: recall.png, SET_confusion.png are shown.
        model: what was measured, such as `the fine-tuned model`.
    """
    report, retrievals = shown.report, shown.retrievals
    tables = dict(paper_tables(report.metrics, report.sets, model))
    classes = {f"Classification of {model}: {result.source.name}": result for result in shown.classifications}
    blocks = [html.cards(_cards(shown))]
    for title, blocks_of in tables.items():
        blocks += blocks_of
        if title == RETRIEVAL:
            blocks += [html.plot(figures["recall.png"], alt="recall against chance")]
    for title, result in classes.items():
        blocks += _classification(title, result, shown, figures)
    for direction, of in shown.examples.items():
        blocks += [html.heading(_where(direction, shown))]
        for verdict, group in (("right", of.right), ("wrong", of.wrong)):
            blocks += [html.subheading(f"answered {verdict}")]
            blocks += [_example(example) for example in group] or [html.paragraph("None.")]
    blocks += [*_reading(shown), html.heading(SETS), _sets([*retrievals, *shown.classifications])]
    return html.page("Evaluation", f"Measured: {model}. {above_chance(report.metrics)}.", blocks, style=STYLE)


def _cards(shown: Shown) -> Iterator[tuple[str, str, str]]:
    """Recall both ways on the first set, and zero-shot. Which version is champion is no input of this stage."""
    for result in shown.retrievals[:1]:
        for way, words in DIRECTIONS.items():
            yield _card(f"{result.source.name}: recall@10, {words}", result.scores[f"{way}/recall@10"])
    for one in shown.classifications:
        yield _card(f"{one.source.name}: zero-shot accuracy", one.scores["zero_shot/accuracy"])


def _card(what: str, one: Score) -> tuple[str, str, str]:
    return f"{what} (by chance {percent(one.chance)})", percent(one.value), "good" if one.low > one.chance else "warn"


def _where(direction: str, shown: Shown) -> str:
    return f"Examples, {DIRECTIONS[direction]} ({shown.retrievals[0].source.name})"


def _reading(shown: Shown) -> Iterator[str]:
    yield html.heading(TABLES)
    yield html.paragraph(
        "Intervals are of a bootstrap over concepts. 'By chance' is the exact value for a random order. Rows with a "
        "number are published ones: their source and protocol stand below the table, and in the title of each cell. "
        "They are shown for sets of a published name; they have other data and sizes of model, and mostly no interval. "
        "Which version is champion may change later: `align promote` compares with it, query by query."
    )
    if shown.retrievals:
        yield html.paragraph(
            "recall@K is the published protocol: the share of queries with at least one correct item in the top K, "
            "where a text is correct for the images that it was written for, those of its concept. Texts of a concept "
            "that differ in case or white space only are one item, except in published files of captions. Where items "
            "are equally near, a query counts by the share of their orders that answer it. A rank in the examples is "
            "behind wrong items that are as near."
        )
    if any(result.source.name == TEST for result in shown.retrievals):
        yield html.paragraph("The set test is of the training distribution: held-out clusters of the same sources.")


def _classification(title: str, result: Classification, shown: Shown, figures: Mapping[str, Figure]) -> Iterator[str]:
    name = result.source.name
    yield html.heading(title)
    yield html.paragraph(
        f"Zero-shot answers with the class whose mean text embedding over {len(result.source.templates)} templates is "
        "nearest, kNN with the class of the nearest reference image. Always answering with the most frequent class "
        f"would be right in {percent(result.majority)} of cases."
    )
    right, wrong = shown.walls.get(name, ([], []))
    for verdict, css, wall in (("right", "good", right), ("wrong", "bad", wrong)):
        yield html.subheading(f"Pictures answered {verdict}")
        yield (
            html.gallery((thumbnail(one.picture, THUMBNAIL_PX), _caption(one), css) for one in wall)
            if wall
            else (html.paragraph("None."))
        )
    yield html.subheading("Confusion")
    yield html.plot(figures[f"{name}_confusion.png"], alt="confusion of classes")
    yield html.subheading("Classes")
    yield _classes(result)
    yield html.note("Classes with many pictures come first.")


def _caption(example: ClassifiedExample) -> str:
    return example.label if example.predicted == example.label else f"{example.label}, not {example.predicted}"


def _sets(results: Sequence[Retrieval | Classification]) -> str:
    rows: list[list[object]] = []
    for result in results:
        source = result.source
        concepts = {image.concept for image in source.images}
        texts = len(result.items.texts) if isinstance(result, Retrieval) else len(source.classes)
        rows.append([source.name, source.kind, source.description, len(source.images), texts, len(concepts)])
    left_out = [[result.source.name, key, why] for result in results for key, why in list(result.faults.items())[:20]]
    sets = html.table(["set", "kind", "description", "images", "texts or classes", "concepts"], rows)
    if not left_out:
        return sets
    number = sum(len(result.faults) for result in results)
    return (
        sets
        + html.paragraph(f"{number:,} pictures or rows were left out, as they could not be used; some of them:")
        + html.table(["set", "left out", "why"], left_out)
    )


def _classes(result: Classification) -> str:
    names = result.source.classes
    rows: list[list[object]] = []
    tuned = {} if result.tuned is None else class_accuracy(result, result.tuned.right)
    for index in sorted(range(len(names)), key=lambda row: (-int(result.confusion[row].sum()), names[row])):
        counts = result.confusion[index]
        if total := int(counts.sum()):
            others = counts.copy()
            others[index] = 0
            mistaken = names[int(others.argmax())] if others.any() else "–"
            after = [percent(tuned[names[index]])] if tuned else []
            rows.append([names[index], total, percent(counts[index] / total), mistaken, *after])
    heads = ["class", "images", "zero-shot accuracy", "most often misclassified as"]
    return html.table([*heads, "accuracy after fine-tuning"] if tuned else heads, rows)


def _example(example: RetrievalExample) -> str:
    css = "good" if example.rank == 1 else "bad"
    missed = "" if example.rank == 1 else f" The best correct answer has rank {example.rank}."
    if isinstance(example.query, bytes):
        texts = "".join(
            f"<li class={'good' if correct else 'bad'}>{html.escape(text)}</li>" for text, correct in example.answers
        )
        missing = f"<p>{html.escape(missed)} A correct text: {html.escape(example.correct)}</p>" if missed else ""
        query = html.picture(thumbnail(example.query, THUMBNAIL_PX), mime="image/jpeg", alt="query")
        return f"<table class=example><tr><td>{query}</td><td><ol>{texts}</ol>{missing}</td></tr></table>"
    shown = [
        (thumbnail(image, THUMBNAIL_PX), str(position), "good" if correct else "bad")
        for position, (image, correct) in enumerate(example.answers, 1)
        if isinstance(image, bytes)
    ]
    if missed and isinstance(example.correct, bytes):
        shown.append((thumbnail(example.correct, THUMBNAIL_PX), f"{example.rank} (correct)", ""))
    return f"<p><span class={css}>“{html.escape(example.query)}”</span>{html.escape(missed)}</p>{html.gallery(shown)}"
