"""The verbs of `align`: stages in pipeline order, then commands; their lines of help, sections and examples.

A verb is a module of that name in the folder of its stage, with `main(params, args)`. Its arguments are in
`align.arguments`, so that help imports none of what its work needs.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import NamedTuple

from align.arguments import commands, stages

#: Appended to examples with other values: what such commands write, and read of each other, lies apart from DVC's.
_TRIAL = "--set paths.root=trial"


class Verb(NamedTuple):
    """A verb.

    Attributes:
        module: with `main`.
        help: its line in the list of verbs.
        sections: its own ones in params.yaml; all verbs read `paths`, too.
        examples: two commands that work as typed, at that point of the pipeline.
        arguments: adds its own arguments to the parser; None if it has none.
    """

    module: str
    help: str
    sections: tuple[str, ...]
    examples: tuple[str, str]
    arguments: Callable[[ArgumentParser], None] | None = None


#: The stages of dvc.yaml, in pipeline order.
STAGES = {
    "ingest": Verb(
        "align.ingest.ingest",
        "read a web archive or a table of addresses into data/raw",
        ("ingest", "download"),
        (
            "align ingest",
            f"align ingest --set ingest.max_pages=50 {_TRIAL}",
        ),
    ),
    "filter": Verb(
        "align.filter.filter",
        "apply every rule of the paper; writes data/filtered",
        ("filter",),
        ("align filter", f"align filter --set filter.min_words=4 {_TRIAL}"),
    ),
    "validate": Verb(
        "align.validate.validate",
        "check tables and decisions: the quality gate before sharding",
        ("validate",),
        ("align validate", f"align validate --set validate.min_pairs=50 {_TRIAL}"),
        stages.validate,
    ),
    "shard": Verb(
        "align.shard.shard",
        "write the kept pairs as tars: data/shards/{train,val,test}",
        ("shard",),
        ("align shard", f"align shard --set shard.image_px=96 {_TRIAL}"),
    ),
    "validate_shards": Verb(
        "align.validate.validate_shards",
        "check the shards: the quality gate before training",
        ("shard", "filter"),
        ("align validate_shards", f"align validate_shards {_TRIAL}"),
    ),
    "fit_tokenizer": Verb(
        "align.training.fit_tokenizer",
        "learn a WordPiece vocabulary from the training texts",
        ("fit_tokenizer", "model"),
        (
            "align fit_tokenizer",
            f"align fit_tokenizer --set fit_tokenizer.vocab_size=4000 {_TRIAL}",
        ),
        stages.data,
    ),
    "pretrain": Verb(
        "align.training.pretrain",
        "train the dual encoder from scratch",
        ("pretrain", "model", "cluster", "health"),
        (
            "align pretrain",
            f"align pretrain --set pretrain.num_steps=100 {_TRIAL}",
        ),
        stages.train,
    ),
    "finetune": Verb(
        "align.training.finetune",
        "fine-tune the pre-trained model for retrieval",
        ("finetune", "pretrain", "model", "cluster", "health"),
        (
            "align finetune",
            f"align finetune --set finetune.num_steps=20 {_TRIAL}",
        ),
        stages.train,
    ),
    "evaluate": Verb(
        "align.evaluate.evaluate",
        "measure retrieval, zero-shot accuracy and kNN on the evaluation sets",
        ("evaluate",),
        (
            "align evaluate --model models/pretrained --reports trial/reports/evaluation",
            "align evaluate --compare models/pretrained models/finetuned --reports trial/compared",
        ),
        stages.evaluate,
    ),
    "package": Verb(
        "align.release.packaging.package",
        "write the model as an MLflow model folder",
        (),
        (
            "align package",
            f"align package {_TRIAL}",
        ),
    ),
    "index": Verb(
        "align.search.index",
        "embed all kept images, or any folder or table of pictures, for search",
        ("index",),
        ("align index", f"align index --set index.queries=null {_TRIAL}"),
        stages.index,
    ),
}

#: The commands, which are not in the DAG.
COMMANDS = {
    "init": Verb(
        "align.project.init",
        "make a project of your own in a new folder: git, DVC, parameters, no sample",
        ("paths",),
        (
            "align init mine --profile photographs --set paths.archive=photos",
            "align init shop --set paths.archive=s3://bucket/pairs --set ingest.source=shards",
        ),
        commands.init,
    ),
    "run": Verb(
        "align.pipeline.run",
        "run the whole pipeline under Prefect, and record it as branch run/<name>",
        (),
        ("align run --name first", "align run --name wide --set model.image_tower=B0"),
        commands.run,
    ),
    "plan": Verb(
        "align.pipeline.plan",
        "show what `align run` would do and need, and what is missing, without doing it",
        (),
        ("align plan", "align plan --set pretrain.num_steps=2000 --json"),
        commands.plan,
    ),
    "register": Verb(
        "align.release.registration.register",
        "complete the MLflow run and register the packaged model",
        ("register", "promote", "evaluate"),
        ("align register", "align register --set register.model_name=trial"),
        commands.register,
    ),
    "promote": Verb(
        "align.release.promotion.promote",
        "make the candidate, or the version named, the champion, if every gate lets it",
        ("promote", "evaluate", "register"),
        ("align promote", "align promote --set promote.margin=0.01 --json"),
        commands.promote,
    ),
    "rollback": Verb(
        "align.release.aliases.rollback",
        "make the last champion that passed its gates the champion again",
        ("register",),
        ("align rollback", 'align rollback --why "misses small pictures"'),
        commands.rollback,
    ),
    "champion": Verb(
        "align.release.aliases.champion",
        "show which version is the champion, since when and why, or which one was it at a time",
        ("register",),
        ("align champion", "align champion --json"),
        commands.champion,
    ),
    "search": Verb(
        "align.search.search",
        "search the indexed images by text, image, image + text or image - text",
        ("search",),
        ('align search "red heart" --html hits.html', "align search cat -k 5 --json"),
        commands.search,
    ),
    "serve": Verb(
        "align.serve",
        "search as a service: a page, an API; follows the champion",
        ("serve", "search", "register"),
        ("align serve", "align serve --local --port 7001"),
        commands.serve,
    ),
    "embed": Verb(
        "align.search.embed",
        "write embeddings of images, texts or a parquet column",
        (),
        (
            "align embed README.md --out lines.parquet",
            "align embed data/filtered/decisions/00000.parquet --column text --out texts.parquet",
        ),
        commands.embed,
    ),
    "ready": Verb(
        "align.search.ready",
        "make a small folder of model, index and thumbnails that shows search without training",
        (),
        ("align ready", f"align ready --out trial/ready {_TRIAL}"),
        commands.ready,
    ),
    "publish": Verb(
        "align.publish",
        "write the page of search as files for any web space: no server, the browser computes",
        ("search",),
        ("align publish --out site", "align publish --index catalogue --out site"),
        commands.publish,
    ),
    "export": Verb(
        "align.release.exchange.export",
        "export a model for transformers, open_clip or onnxruntime, and check it against ours",
        (),
        ("align export --format hf --out exported", "align export --format align --checkpoint best --out models/best"),
        commands.export,
    ),
    "import_model": Verb(
        "align.release.exchange.import_model",
        "import a folder of transformers.AlignModel as a model folder like ours",
        ("model",),
        (
            "align import_model --from exported --out models/imported",
            "align import_model --from align-base --out models/align-base",
        ),
        commands.import_model,
    ),
    "blend": Verb(
        "align.pipeline.blend",
        "a model between two of one shape: weights interpolated",
        (),
        (
            "align blend models/pretrained models/finetuned --alpha 0.5 --out models/blended",
            "align blend models/imported models/finetuned --alpha 0.4 --out trial/blended",
        ),
        commands.blend,
    ),
    "trace": Verb(
        "align.lineage.trace.trace",
        "all that is known of a pair; what a model, run, shard, pair or address came from, and where it went",
        ("filter", "register", "ingest"),
        ("align trace align@champion --html lineage.html", "align trace 000000012"),
        commands.trace,
    ),
    "opt_out": Verb(
        "align.lineage.take_down.opt_out",
        "take-downs: record what people opted out; --purge removes the bytes",
        (),
        ('align opt_out --urls urls.txt --reason "asked by the photographer"', "align opt_out --purge"),
        commands.opt_out,
    ),
    "compare": Verb(
        "align.lineage.runs.compare",
        "runs side by side: parameters, code, metrics with intervals, cost (for the pairs of the data: diff)",
        (),
        ("align compare demo wide", "align compare demo wide . --html runs.html"),
        commands.compare,
    ),
    "runs": Verb(
        "align.pipeline.runs",
        "list every run: state, parameters that differ, metrics, cost; show one; --repair killed ones",
        (),
        ("align runs", "align runs show demo"),
        commands.runs,
    ),
    "study": Verb(
        "align.pipeline.study",
        "arms x seeds as recorded runs, each compared with the first arm; started again, a study makes what is missing",
        (),
        ("align study infra/studies/paper.yaml", "align study infra/studies/paper.yaml --set pretrain.num_steps=100"),
        commands.study,
    ),
    "diff": Verb(
        "align.lineage.diff",
        "two versions of the data: which pairs entered and left, and why (for runs and their metrics: compare)",
        (),
        ("align diff run/demo run/wide", "align diff data trial/data --json"),
        commands.diff,
    ),
}

VERBS = STAGES | COMMANDS

#: What most people come for; at the end of `align --help`.
JOURNEYS = """\
the demo, in a checkout (fourteen minutes on two slow cores):
  make demo
  align search "red heart" --html hits.html

your own photographs:
  align init mine --profile photographs --set paths.archive=photos
  cd mine
  dvc repro                                    # or, recorded and registered: align run --name photographs
  align search "a dog on a beach" --html hits.html

your own model, such as kakaobrain/align-base:
  align import_model --from align-base --out models/align-base
  dvc add models/align-base                    # keeps it, as an input
  edit finetune.from in params.yaml: models/align-base
  git add models/align-base.dvc params.yaml && git commit -m "a model of our own"
  align run --name own                         # fine-tunes, measures and registers it
  align promote

align VERB --help has two examples of each verb. Values are in params.yaml; --set SECTION.KEY=VALUE changes one.
"""


def named(word: str) -> str:
    """The verb that a word names: dashes are as good as underscores. An unknown word is returned as it is."""
    verb = word.replace("-", "_")
    return verb if verb in VERBS else word


def epilog(verb: str) -> str:
    """The end of a verb's help: where its values are, and its examples."""
    sections = [f"`{section}`" for section in VERBS[verb].sections] or ["`paths`"]
    names = sections[0] if len(sections) == 1 else f"{', '.join(sections[:-1])} and {sections[-1]}"
    plural = "s" if len(sections) > 1 else ""
    examples = "\n".join(f"  {example}" for example in VERBS[verb].examples)
    return f"values: section{plural} {names} of params.yaml\n\nexamples:\n{examples}\n"
