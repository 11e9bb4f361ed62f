"""The whole filter in Data-Juicer; runs in an environment of its own and shares with us what a text is, no more.

    python data_juicer_peer.py '{"pairs": FILE, "out": FOLDER, "reader": "own" | "datasets",
                                 "rules": [CODE, ...], "cuts": {NAME: VALUE, ...}}'

reads FILE, writes out/decisions.parquet and prints JSON: CPU seconds of the recipe with all its processes (imports not
counted) and peak memory.

A recipe for its own executor, which reads, processes and exports. None of its own operators has our rules: its words
are split at spaces, its image operators open files, and its filters drop a row at the first reason, while we need all
reasons. So the operators are ours, derived from its base classes, chosen for speed:
  * what depends on one row only is a batched Mapper. (A Filter would add a column of stats by a pass over single rows,
    and pass over all rows again to drop none.)
  * what needs the whole data set is a Selector, whose `process` gets it whole, and counts in Arrow, not in Python.
    (A Deduplicator hands its `compute_hash` one row at a time, batched or not.)
`num_proc` 0 computes in the process itself; its 1 forks a worker for each operator.

Its own reader looks for missing texts row by row and makes a list of rows, through which the first operator fetches
each row separately: two thirds of the whole time. So there is a second variant: `datasets` reads, and the executor gets
the data set, which it allows.
"""

import json
import os
import resource
import sys
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch  # noqa: F401 - Data-Juicer imports it after the first operator, where it would be counted
from data_juicer.config import init_configs
from data_juicer.core.data import NestedDataset
from data_juicer.core.executor import DefaultExecutor
from data_juicer.ops.base_op import OPERATORS, Mapper, Selector
from datasets import load_dataset

sys.path.insert(0, str(Path(__file__).parents[3]))

from align.pairs.text import is_filename, languages, normalise, personal_data, words

_COLUMNS = ["key", "keep", "reason", "reasons", "image_id", "image_key", "text", "language"]


@OPERATORS.register_module("align_text_mapper")
class TextMapper(Mapper):
    """Replaces the text by its normal form, and adds all that depends on it alone."""

    _batched_op = True

    def process_batched(self, samples):
        texts = [normalise(text) for text in samples[self.text_key]]
        samples[self.text_key] = texts
        samples["words"] = found = [words(text) for text in texts]
        samples["num_words"] = [len(unigrams) for unigrams in found]
        samples["num_emails"], samples["num_phones"] = map(list, zip(*map(personal_data, texts), strict=True))
        samples["is_filename"] = [is_filename(text) for text in texts]
        return samples


@OPERATORS.register_module("align_distinct_selector")
class DistinctSelector(Selector):
    """How many distinct values of one column the rows with the same value of another have; empty texts do not count."""

    def __init__(self, of: str = "", per: str = "", result: str = "", *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.of, self.per, self.result = of, per, result

    def process(self, dataset):
        table = _table(dataset, sorted({self.of, self.per, self.text_key}))
        used = table.filter((pc.field(self.text_key) != "") & pc.field(self.per).is_valid())
        distinct = used.group_by([self.per, self.of]).aggregate([])
        counts = distinct.group_by(self.per).aggregate([([], "count_all")])
        found = counts["count_all"].take(pc.index_in(table[self.per], value_set=counts[self.per].combine_chunks()))
        return dataset.add_column(self.result, pc.fill_null(found, 0).to_numpy())


@OPERATORS.register_module("align_rare_ngram_selector")
class RareNgramSelector(Selector):
    """Whether some unigram or bigram is not among the so many most frequent ones; takes the words away."""

    def __init__(self, num_frequent: int = 1, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_frequent = num_frequent

    def process(self, dataset):
        column = _table(dataset, ["words"])["words"].combine_chunks()
        unigrams, rows = column.flatten(), pc.list_parent_indices(column)
        same_row = pc.equal(rows[:-1], rows[1:])
        bigrams = pc.binary_join_element_wise(unigrams[:-1], unigrams[1:], " ").filter(same_row)
        rows = pa.concat_arrays([rows, rows[1:].filter(same_row)]).to_numpy()
        ngrams = pa.concat_arrays([unigrams, bigrams]).dictionary_encode().indices.to_numpy()
        counts = np.bincount(ngrams)
        cut = _cut(dict(zip(*np.unique(counts, return_counts=True), strict=True)), self.num_frequent)
        rare = np.zeros(len(dataset), dtype=bool)
        rare[rows[(counts < cut)[ngrams]]] = True
        return dataset.remove_columns(["words"]).add_column("rare", rare)


@OPERATORS.register_module("align_reasons_mapper")
class ReasonsMapper(Mapper):
    """Every rule that drops a pair, in rule order."""

    _batched_op = True

    def __init__(self, rules: list | None = None, cuts: dict | None = None, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rules, self.cuts = rules, cuts

    def process_batched(self, samples):
        cuts, decodable = self.cuts, samples["decodable"]
        sizes = [
            None if width is None else (min(width, height), max(width, height))
            for width, height in zip(samples["width_px"], samples["height_px"], strict=True)
        ]
        num_words = samples["num_words"]
        short_px, ratio = cuts["short_side_above_px"], cuts["aspect_ratio_below"]
        nsfw, scores = cuts["nsfw_threshold"], samples["nsfw_score"]
        flags = {
            "opted_out": [False] * len(decodable),
            "image_missing": [known is None for known in decodable],
            "image_undecodable": [known is False for known in decodable],
            "image_nsfw": [score is not None and score >= nsfw for score in scores],
            "image_too_small": [size is not None and size[0] <= short_px for size in sizes],
            "image_aspect_ratio": [size is not None and size[1] >= ratio * size[0] for size in sizes],
            "image_too_many_texts": [num > cuts["max_texts_per_image"] for num in samples["num_texts"]],
            "image_near_duplicate_of_test": [num is not None and num > 0 for num in samples["num_evaluation_sets"]],
            "text_shared_by_many_images": [num > cuts["max_images_per_text"] for num in samples["num_images"]],
            "text_rare_ngram": samples["rare"],
            "text_too_short": [num < cuts["min_words"] for num in num_words],
            "text_too_long": [num > cuts["max_words"] for num in num_words],
            "text_is_filename": samples["is_filename"],
            "image_not_fetched": [False] * len(decodable),
        }
        rows = zip(*(flags[code] for code in self.rules), strict=True)
        samples["reasons"] = reasons = [list(compress(self.rules, row)) for row in rows]
        samples["keep"] = [not codes for codes in reasons]
        samples["reason"] = [codes[0] if codes else None for codes in reasons]
        kept = zip(samples[self.text_key], samples["keep"], strict=True)
        samples["language"] = [languages([text])[0] if keep else None for text, keep in kept]
        return samples


@OPERATORS.register_module("align_columns_selector")
class ColumnsSelector(Selector):
    """Leaves the columns of a decision: the exporter writes all that there are."""

    def process(self, dataset):
        return dataset.select_columns(_COLUMNS)


def _table(dataset, columns):
    """Columns as Arrow has them."""
    return dataset.select_columns(columns).with_format("arrow")[:]


def _cut(counts, num_frequent):
    """`align.filter.ngrams.vocabulary_cut`, whose module would bring more of ours along."""
    cut, listed = max(counts, default=0) + 1, 0
    for count in sorted(counts, reverse=True):
        if listed + counts[count] > num_frequent:
            return cut
        cut, listed = count, listed + counts[count]
    return 1


def _recipe(job):
    out, cuts = job["out"], job["cuts"]
    return {
        "project_name": "align",
        "dataset_path": job["pairs"],  # for the reader of its own
        "export_path": f"{out}/decisions.parquet",
        "work_dir": f"{out}/work",
        "ds_cache_dir": f"{out}/cache",
        "np": 1,
        "load_dataset_kwargs": {"num_proc": None},
        "auto_op_parallelism": False,
        "skip_op_error": False,
        "process": [
            {name: {**parameters, "num_proc": 0}}
            for name, parameters in (
                ("align_text_mapper", {}),
                ("align_distinct_selector", {"of": "text", "per": "image_id", "result": "num_texts"}),
                ("align_distinct_selector", {"of": "image", "per": "text", "result": "num_images"}),
                ("align_rare_ngram_selector", {"num_frequent": cuts["num_frequent_ngrams"]}),
                ("align_reasons_mapper", {"rules": job["rules"], "cuts": cuts}),
                ("align_columns_selector", {}),
            )
        ],
    }


def _read(job):
    return NestedDataset(load_dataset("parquet", data_files=job["pairs"], split="train"))


def main():
    job = json.loads(sys.argv[1])
    pa.set_cpu_count(1)
    start = sum(os.times()[:4])
    recipe = Path(job["out"]) / "recipe.yaml"
    recipe.write_text(json.dumps(_recipe(job)))  # JSON is YAML
    executor = DefaultExecutor(init_configs(["--config", str(recipe)]))
    executor.run(_read(job) if job["reader"] == "datasets" else None, skip_return=True)
    spent = sum(os.times()[:4]) - start  # user and system, of this process and its children
    status = Path("/proc/self/status").read_text()
    own = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    found = {"cpu_s": spent, "peak_bytes": max(own, largest_child) << 10}
    print(json.dumps(found), file=sys.__stdout__)  # the other one it has taken for its log


if __name__ == "__main__":
    main()
