"""The pages for people: their links lead somewhere, and the values that they tell readers to set are valid."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.config import Section
from align.config.download import DownloadConfig
from align.config.filter import FilterConfig
from align.config.finetune import FinetuneConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.index import IndexConfig
from align.config.ingest import IngestConfig
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.pretrain import PretrainConfig
from align.config.promote import PromoteConfig
from align.config.shard import ShardConfig
from align.config.validate import ValidateConfig
from tests.support import ROOT
from tests.support.params import PARAMS_FILE, load_params

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("data/*/*.md")]
SECTIONS: list[type[Section]] = [
    PathsConfig, IngestConfig, DownloadConfig, FilterConfig, ValidateConfig, ShardConfig, ModelConfig,
    FitTokenizerConfig, PretrainConfig, FinetuneConfig, IndexConfig, PromoteConfig,
]  # fmt: skip


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"
    for name in re.findall(r"\]\[([^\]]+)\]", text):
        assert f"\n[{name}]: https://" in text, f"[{name}] is not defined"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and key != "columns":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_values_for_own_data_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/own-data.md").read_text("utf-8"), re.DOTALL)
    common, *examples = [YAML(typ="safe", pure=True).load(block) for block in blocks]
    assert len(examples) >= 3
    for example in examples:
        values = [*leaves(common), *leaves(example)]
        params = load_params(PARAMS_FILE, [f"{key}={json.dumps(value)}" for key, value in values])
        for section in SECTIONS:
            params.section(section)
