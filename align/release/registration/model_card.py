"""The model card of a version, in Markdown: what the model is, what made it, how good it is, and what it is not for.

It is the version's description in the registry and an artifact of its run. All figures are read from the stages'
reports; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from align.display.report import reported
from align.display.shares import percent
from align.display.visible import markdown_table, plain_markdown
from align.release.registration.results import PipelineOutputs, Results
from align.release.registration.shown import measured
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST
from align.services.tracking.tracker import REVISION, metric_name

#: Its name among the artifacts of a run.
CARD = "model_card.md"
#: MLflow's limit of a version's description.
MAX_DESCRIPTION = 5000
#: Metrics of the card, of each set.
_SHOWN = ("image_to_text/recall@10", "text_to_image/recall@10", "zero_shot/accuracy", "knn/accuracy")
#: So many of them are in its first line.
_FIRST = 3
#: Sections of params.yaml that are the recipe.
_RECIPE = ("model.", "pretrain.", "finetune.")
_LIMITS = (
    "It knows the words and the kinds of pictures that it was trained on, and little else; the sets above are small "
    "samples of them.",
    "Alt-texts from the web are wrong, biased and incomplete. So is what the model learned from them.",
    "Do not use it to identify or judge people, or where a wrong answer does harm.",
    "Cosines of two models cannot be compared; an index belongs to the model that made it.",
)


@dataclass(frozen=True)
class Champion:
    """The version to compare with: its number, and its metrics under MLflow's names."""

    number: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ModelCard:
    """What a card is written from.

    Attributes:
        name: of the registered model.
        results: what is registered.
        outputs: the folders of its stages.
        origin: tags that say where it comes from.
        run: the run's page, or its id.
        champion: the champion when it was registered, if any.
        verdict: what a promotion would have said then, in a sentence; empty: it is not known yet.
        number: of the version, once it has one.
    """

    name: str
    results: Results
    outputs: PipelineOutputs
    origin: Mapping[str, str]
    run: str
    champion: Champion | None
    number: int | str = "VERSION"
    verdict: str = ""

    def markdown(self) -> str:
        """The whole card."""
        return _joined(self._sections())

    def description(self) -> str:
        """The card as a description: sections that do not fit are left out, from the end."""
        kept = list(self._sections())
        left_out = f"The whole card is `{CARD}` among the run's artifacts."
        while len(_joined([*kept, left_out])) > MAX_DESCRIPTION:
            kept.pop()
        return _joined([*kept, left_out])

    def _sections(self) -> Iterator[str]:
        yield self._first()
        yield "## Measured\n\n" + self._metrics()
        yield self._what()
        yield "## Use\n\n" + self._use()
        yield "## Data\n\n" + self._data()
        yield "## Limits\n\n" + "\n".join(f"* {line}" for line in _LIMITS)
        yield "## Recipe\n\n" + self._recipe()
        yield "## Licences\n\n" + (
            "The code in its folder: Apache-2.0. The pictures and texts that it was trained on have licences of "
            "their own, and stay with their owners; `align trace` says where each comes from, and `align opt_out` "
            "takes one out."
        )

    def _first(self) -> str:
        figures = [f"{name}/{metric} {_share(value)}" for name, metric, value, *_ in self._rows()[:_FIRST]]
        said = f"{', '.join(figures) or 'Nothing was measured'}{f'; {self.verdict}' if self.verdict else ''}"
        return f"**{plain_markdown(said)}.**"

    def _what(self) -> str:
        tags = self.results.tags() | dict(self.origin)
        lines = [
            f"Promote it with `align promote --version {self.number}`, or by `promote-a-version` in Prefect: they ask "
            'every gate. MLflow\'s own button "Promote model" asks none.',
            "An ALIGN dual encoder (Jia et al., ICML 2021): one tower for pictures, one for texts. The dot product of "
            "two embeddings is their cosine.",
        ]
        if imported := tags.get("align.imported_from"):
            lines.append(f"It was imported from {plain_markdown(imported)} and fine-tuned.")
        names = {
            MODEL_DIGEST: "model",
            DATA_DIGEST: "data",
            REVISION: "code",
            "align.policy_digest": "policy",
        }
        digests = [f"{word} `{plain_markdown(tags[tag])[:12]}`" for tag, word in names.items() if tags.get(tag)]
        lines.append(f"{', '.join(digests)}; run: {plain_markdown(self.run)}")
        return f"## {plain_markdown(self.name)}\n\n" + "\n\n".join(lines)

    def _rows(self) -> list[tuple[Any, ...]]:
        return [row for ending in _SHOWN for row in measured(self.results.metrics, ending)]

    def _metrics(self) -> str:
        if not (rows := self._rows()):
            return "Nothing was measured."
        head = ["set", "metric", "value", "95 % interval", "chance"]
        if self.champion:
            head.append(f"champion (version {self.champion.number})")
        cells = []
        for name, metric, value, low, high, chance in sorted(rows):
            line = [name, metric, _share(value), f"{_share(low)} to {_share(high)}", _share(chance)]
            if self.champion:
                line.append(_share(self.champion.metrics.get(metric_name(f"{name}/{metric}"))))
            cells.append(line)
        return markdown_table(head, cells)

    def _data(self) -> str:
        reports = self.outputs.reports
        lines, not_gated, no_shards = [], self.results.not_gated, self.results.data_digest in self.results.not_gated
        if not no_shards and (funnel := reported(reports / "filter").get("funnel")):
            report = reported(reports / "filter")
            dropped = [[row["reason"], f"{row['num_first']:,}"] for row in funnel if row["num_first"]]
            lines.append(f"{report['num_kept']:,} of {report['num_pairs']:,} pairs passed the filter. Dropped:")
            lines.append(markdown_table(["rule", "pairs"], dropped))
        trained = reported(reports / "pretrain") or reported(reports / "finetune")
        if trained:
            lines.append(
                f"Trained on {trained['num_training_pairs']:,} pairs of {trained['num_training_images']:,} images "
                "(the paper: 1.8 billion pairs)."
            )
        if not_gated:
            named = ", ".join(one[:12] for one in not_gated)
            lines.append(
                f"Not gated: no rule, and no gate, has seen {named}, which may have pictures of evaluation sets."
            )
        if no_shards:
            return "\n\n".join(lines)
        accepted = self.results.accepted
        gate = "The quality gates passed" + (", with what a person accepted:" if accepted else ".")
        lines.append("\n".join([gate, *(f"* {plain_markdown(one)}" for one in accepted)]))
        return "\n\n".join(lines)

    def _recipe(self) -> str:
        recipe = [(key, value) for key, value in self.results.params.items() if key.startswith(_RECIPE)]
        rows = [[f"`{key}`", str(value)] for key, value in recipe]
        return markdown_table(["parameter", "value"], rows).replace(r"\`", "`")  # ours, around the names

    def _use(self) -> str:
        return (
            "```python\n"
            "import mlflow, pandas\n"
            f'model = mlflow.pyfunc.load_model("models:/{self.name}/{self.number}")\n'
            'texts = model.predict(pandas.DataFrame({"text": ["a red fox", "two owls"]}))\n'
            'images = model.predict(pandas.DataFrame({"image": [open("fox.jpg", "rb").read()]}))\n'
            'print(images["image_embedding"].map(lambda image: [sum(a * b for a, b in zip(image, text)) '
            'for text in texts["text_embedding"]]))\n'
            "```"
        )


def _joined(sections: Iterable[str]) -> str:
    return "\n\n".join(sections) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)
