"""The pages for people: their links lead somewhere, and the values that they state are those of the files."""

import inspect
import re
import textwrap

import pytest
from ruamel.yaml import YAML

from align.filter.rules import RULES
from align.training import train
from tests.support import ROOT
from tests.support.params import PARAMS_FILE

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("data/*/*.md")]


def anchors(page):
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page):
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


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_the_table_of_values_is_true():
    """docs/own-data.md, columns `demo` and `profile photographs`: their numbers are those of the files."""
    text = (ROOT / "docs/own-data.md").read_text("utf-8")
    table = re.findall(
        r"^\| (`.+?) \| (.+?) \| (.+?) \| .+ \| .* \|$", text[text.index("| key | demo |") :], re.MULTILINE
    )
    demo = load(PARAMS_FILE)  # the demo's values, whatever a user has
    project = [load(ROOT / name) for name in ("infra/profiles/photographs.yaml", "align/project/template/params.yaml")]
    compared = 0
    for names, *shown in table:
        first, *more = re.findall(r"`([\w.]+)`", names)
        keys = [first, *(f"{first.partition('.')[0]}.{name}" if "." not in name else name for name in more)]
        for column, cell in enumerate(shown):
            numbers = cell.split(", ")
            for key, number in zip(keys, numbers if len(numbers) == len(keys) else numbers * len(keys), strict=True):
                section, _, name = key.partition(".")
                stated = demo[section][name]
                changed = [values[section][name] for values in project if name in values.get(section, {})]
                value = changed[0] if column and changed else stated
                if re.fullmatch(r"[\d.e-]+", number):
                    assert value == float(number), f"{key}: {number}"
                    compared += 1
    assert compared > 30


def load(file):
    """A YAML file."""
    return YAML(typ="safe", pure=True).load(file.read_text("utf-8"))


def test_the_glossary_has_every_reason_code():
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    codes = set(re.findall(r"`(\w+)`", text[text.index("Reason codes of the filter") :]))
    assert codes == set(RULES)


def test_the_page_about_a_step_quotes_the_loop():
    source = textwrap.dedent(inspect.getsource(train.train))
    loop = textwrap.dedent(source[source.index("        for batch in ") : source.index("        # All wait until")])
    assert f"```python\n{loop.rstrip()}\n```" in (ROOT / "docs/architecture.md").read_text()
