"""What ingest says of one text is what the filter decides in SQL over whole tables."""

import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.filter import rules
from align.filter.pair_tables import pair_tables
from align.filter.tables import IMAGES
from align.formats.policy import OptedOut
from align.formats.raw import SCHEMA
from align.pairs.text import MAX_CHARACTERS
from align.pairs.text_cuts import TextCuts
from align.services.engine import open_engine
from tests.support import ROOT
from tests.support.params import load_params

CONFIG = load_params().section(FilterConfig)
CUTS = TextCuts(CONFIG.min_words, CONFIG.max_words, CONFIG.max_characters, CONFIG.drop_filenames)
ON_TEXTS = ("text_too_short", "text_too_long", "text_is_filename")


def texts() -> list[str | None]:
    draw = random.Random(0)
    characters = [chr(code) for code in range(32, 127)] + list(
        "      éß猫が\u0301😀ſıİ’\u200dא٣ﬀ\uff9e\t\n\u00a0\u3000"
    )
    some = ["".join(draw.choices(characters, k=draw.randrange(120))) for _ in range(3000)]
    words = ["a picture", "img", "don't", "1920x1080", "猫", "a.b", "_", "...", "photo.jpg", "x/y/z"]
    some += [" ".join(draw.choices(words, k=draw.randrange(26))) for _ in range(3000)]
    some += [path.read_bytes().decode(errors="replace") for path in (ROOT / "tests/fuzz/corpus/text").iterdir()]
    for length in (999, 1000, 1001, MAX_CHARACTERS - 1, MAX_CHARACTERS):
        some += [f"three words {'x' * (length - 12)}", f"three short words{' ' * (length - 17)}", "a " * (length // 2)]
    return [None, "", *some, "\uff9e" * 1000, "e" + "\u0301" * 900, "IMG_0001.jpg", "Screenshot 2020-01-01 at 10.10.10"]


@pytest.mark.parametrize(
    "cuts",
    [
        CUTS,
        replace(CUTS, min_words=1, drop_filenames=False),
        replace(CUTS, min_words=5, max_words=7, max_characters=40),
        replace(CUTS, max_words=5000, max_characters=8000),
    ],
    ids=str,
)
def test_one_text_and_whole_tables_agree(cuts: TextCuts, tmp_path: Path) -> None:
    captions = texts()
    raw = [{"caption": text, "key": f"{row:09d}", "url": f"http://x/{row}"} for row, text in enumerate(captions)]
    table = pair_tables(
        0, pa.Table.from_pylist(raw, SCHEMA), IMAGES.empty_table(), OptedOut(),
        max_characters=cuts.max_characters, by_language=False,
    )["pairs"]  # fmt: skip
    pq.write_table(table, tmp_path / "pairs.parquet")
    config = CONFIG.model_copy(update={name: getattr(cuts, name) for name in TextCuts.__dataclass_fields__})
    limits = {"memory_limit": "200MB", "num_threads": 1, "temp_directory": tmp_path}
    with open_engine(load_params().section(EngineConfig).model_copy(update=limits)) as engine:
        engine.view("pairs", tmp_path / "pairs.parquet")
        masks = engine.rows(f"SELECT {rules.mask(config, ON_TEXTS)} FROM pairs ORDER BY row_number")
    decided = [mask == 0 for (mask,) in masks]
    assert [cuts.can_pass(text) for text in captions] == decided
    assert 0 < sum(decided) < len(decided)
