"""The stage: training texts in, tokenizer folder and report out, the same bytes each time."""

import json
import re

import pytest
from PIL import Image

from align.config.fit_tokenizer import FitTokenizerConfig
from align.durable.files import sha256_file
from align.errors import DataError
from align.formats.shards import iter_texts
from align.model.tokenizer import TextTokenizer
from align.training.fit_tokenizer import fit_tokenizer
from align.training.tokenizer_page import write_page
from tests.support import training_data

CONFIG = FitTokenizerConfig.model_validate({"vocab_size": 90, "min_count": 1, "max_texts": 1000, "from": None})


def test_learns_from_the_training_split(tmp_path):
    shards, _ = training_data.write(tmp_path)
    for name in ("a", "b"):
        report = fit_tokenizer(
            CONFIG, max_tokens=6, shards=shards, out=tmp_path / name / "tokenizer", reports=tmp_path / name / "report"
        )
    assert report.metrics["fit_tokenizer/num_texts"] == 48  # 24 images with two texts each; those of val are not read
    assert report.metrics["fit_tokenizer/vocab_size"] <= 90
    assert report.metrics["fit_tokenizer/num_unknown_tokens"] == 0
    assert report.metrics["fit_tokenizer/longest_text_tokens"] >= 8  # a red bar at the top, and two markers
    whole = TextTokenizer.load(tmp_path / "a" / "tokenizer", max_tokens=1000)
    lengths = [len(ids) for texts in iter_texts(shards, "train", None) for ids in whole.ids(texts)]
    assert 48 > report.metrics["fit_tokenizer/num_truncated"] == sum(length > 6 for length in lengths) >= 24
    assert report.metrics["fit_tokenizer/tokens_per_text"] == round(sum(lengths) / 48, 4)
    assert report.longest_text.startswith("a ")
    tokenizer = TextTokenizer.load(tmp_path / "a" / "tokenizer", max_tokens=6)
    assert tokenizer.vocab_size == report.metrics["fit_tokenizer/vocab_size"]
    for path in (
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "report/report.json",
        "report/report.html",
    ):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert json.loads((tmp_path / "a/report/metrics.json").read_text()) == report.metrics


def test_the_page_has_lengths_against_the_cut_and_tokens_by_how_often_they_occur(tmp_path):
    metrics = {"vocab_size": 4, "num_texts": 10, "tokens_per_text": 30.0, "num_truncated": 3, "num_unknown_tokens": 0}
    metrics = {f"fit_tokenizer/{name}": value for name, value in metrics.items()}
    pieces = {"often": 70, "##rare": 1, "seldom": 2, "never": 0}
    write_page(metrics, pieces, {5: 7, 64: 2, 200: 1}, 63, to=tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    most, least = (part.partition("</table>")[0] for part in page.split("<th>token</th>")[1:])
    order = [re.findall(r"<td>(\S+)</td><td class=number>(\d+)</td>", part) for part in (most, least)]
    assert order[0] == [("often", "70"), ("seldom", "2"), ("##rare", "1")] and order[1] == order[0][::-1]
    assert "30.00%</b><span>texts are cut at 63" in page and '<b class="">3</b><span>of them occur' in page
    with Image.open(tmp_path / "lengths.png") as image:
        assert image.width > 300


def test_of_many_texts_the_first_are_read_and_no_later_tar(tmp_path, small_blocks):
    shards, _ = training_data.write(tmp_path)
    away, fetched = tmp_path / "away", list[int]()
    away.mkdir()
    for tar in (shards / "train").glob("*.tar"):
        tar.rename(away / sha256_file(tar))

    def fetch(sha256, num_bytes):
        fetched.append(num_bytes)
        return away / sha256

    def learn(max_texts, name):
        config = CONFIG.model_copy(update={"max_texts": max_texts})
        return fit_tokenizer(
            config, max_tokens=6, shards=shards, out=tmp_path / name, reports=tmp_path / f"{name} report", fetch=fetch
        )

    report, first = learn(5, "some"), next(iter_texts(shards, "train", fetch))
    assert report.metrics["fit_tokenizer/num_texts"] == 5 and len(fetched) == 3  # each pass reads one tar
    assert report.metrics["fit_tokenizer/vocab_size"] < learn(1000, "all").metrics["fit_tokenizer/vocab_size"]
    assert learn(len(first), "one image").longest_text == max(first, key=lambda text: (len(text.split()), text))


def test_no_shards(tmp_path):
    with pytest.raises(DataError, match="run `align shard` first"):
        fit_tokenizer(CONFIG, max_tokens=6, shards=tmp_path, out=tmp_path / "t", reports=tmp_path / "r")
