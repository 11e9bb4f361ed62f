"""A stage is what dvc.yaml says it is, before it runs: under DVC no value of params.yaml makes a folder an out."""

import ast
import shutil

import pytest
from ruamel.yaml import YAML

from align.cli import main
from align.config.params import write_params
from align.config.paths import WRITTEN_BY, PathsConfig, require_declared
from align.errors import ConfigError
from align.project import provenance
from align.project.declared import all_outs, declared_outs
from flows.dag import read_dag
from tests.support import ROOT
from tests.support.params import PARAMS_FILE, load_params

OUTS = declared_outs(ROOT)


def test_the_paths_of_params_are_the_outs_of_dvc():
    paths = load_params().section(PathsConfig)
    assert {getattr(paths, name).as_posix(): stage for name, stage in WRITTEN_BY.items()} == {
        out: stage for stage, outs in OUTS.items() for out in outs if not out.startswith(f"{paths.reports}/")
    }
    require_declared(load_params().values["paths"], OUTS)


def test_an_out_with_options_is_its_path(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {a: {outs: [x, y: {cache: false}]}, b: {}, c: , d: {outs: }}")
    assert all_outs(tmp_path) == {"a": ("x", "y"), "b": (), "d": ()}
    assert set(all_outs(ROOT)) - set(OUTS) == {"code"}


def test_no_parameter_names_what_dvc_writes():
    document = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())
    text = str({name: value for name, value in document.items() if name != "stages"})
    text += str([entry["outs"] for entry in document["stages"].values()])
    assert "${" not in text


@pytest.mark.parametrize(("changes", "says"), [
    *(
        ([f"paths.{name}=elsewhere"], rf"^paths\.{name} = elsewhere: stage {WRITTEN_BY.get(name, '')}.* writes ")
        for name in (*WRITTEN_BY, "reports")
    ),
    (
        ["paths.raw=data/filtered", "paths.filtered=data/raw"],  # swapped
        r"paths\.raw = data/filtered: stage ingest of dvc\.yaml writes data/raw",
    ),
    (["paths.root=trial"], r"^paths\.root = trial moves paths\.raw: .* put paths\.root back"),
])  # fmt: skip
def test_another_path_is_named_with_what_dvc_writes(changes, says):
    with pytest.raises(ConfigError, match=says):
        require_declared(load_params(PARAMS_FILE, changes).values["paths"], OUTS)


def test_the_pipeline_refuses_other_paths_before_any_stage(tmp_path):
    for file in (ROOT / "dvc.yaml", PARAMS_FILE):
        shutil.copy(file, tmp_path)
    write_params(tmp_path / "params.yaml", {"paths.tokenizer": "theirs/tokenizer"})
    with pytest.raises(ConfigError, match=r"paths\.tokenizer = theirs/tokenizer: stage fit_tokenizer"):
        read_dag(tmp_path)


def test_a_stage_under_dvc_refuses_a_folder_that_params_yaml_names_as_an_output(tmp_path, monkeypatch, capsys):
    for file in (ROOT / "dvc.yaml", PARAMS_FILE):
        shutil.copy(file, tmp_path)
    write_params(tmp_path / "params.yaml", {"paths.pretrained": "theirs/model"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    assert main(["pretrain"]) == 1
    said = capsys.readouterr().err
    assert "paths.pretrained = theirs/model" in said and said.count("\n") == 1


PACKAGE = {
    "__init__": '"""The package."""',
    "display.__init__": "",
    "display.console": "def say(message): print(message)\ndef track(items, *, what): return items",
    "display.html": "import align.page_style",
    "page_style": "STYLE = 'green'",
    "display.figure": "INK = 'black'",
    "stage.__init__": '"""A stage."""',
    "stage.verb": '''
"""The verb."""
from align.display import html
from align.display.console import say, track
from align.stage import rules
def main(items):
    """Does it."""
    say("working")
    for item in track(items, what="items"):
        yield rules.cut(item)
''',
    "stage.rules": """
from align.config.store import StoreConfig
from align.config.cuts import CutsConfig
def cut(item):
    from align.later import value  # inside a function
    # a comment
    return item < value
""",
    "stage.alone": "import align.display.figure",
    "later": "value = 3",
    "config.__init__": "from align.config.params import load_params",
    "config.params": "def load_params(): pass",
    "config.cuts": "class CutsConfig:\n    section: str = 'cuts'",
    "config.store": "class StoreConfig:\n    section: str = 'store'\n    changes_bytes: bool = False",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The small package, in place of the real one."""
    for name, text in PACKAGE.items():
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    return tmp_path


def digest_after(path, old, new):
    """The verb's digest after an edit, as the next process would compute it."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    provenance._read.cache_clear()
    return provenance.digest("align.stage.verb")


def test_closure_is_all_that_an_import_loads_then_or_later(root):
    assert set(provenance.closure("align.stage.verb")) == {
        "align", "align.display", "align.display.console", "align.display.html", "align.page_style", "align.stage",
        "align.stage.verb", "align.stage.rules", "align.later", "align.config", "align.config.params",
        "align.config.cuts", "align.config.store",
    }  # fmt: skip
    assert provenance.closure("align.later") == {"align": root / "__init__.py", "align.later": root / "later.py"}


def test_deciding_modules_leave_out_what_changes_no_byte_and_what_only_that_imports(root):
    assert set(provenance.deciding("align.stage.verb")) == {
        "align.display", "align.stage", "align.stage.verb", "align.stage.rules", "align.later", "align.config.cuts",
    }  # fmt: skip
    assert set(provenance.deciding("align.stage.alone")) == {"align.stage", "align.stage.alone"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stage/verb.py", '"""The verb."""', '"""Another docstring."""'),
        ("stage/verb.py", '"""Does it."""', '"""Does all of it."""'),
        ("stage/verb.py", 'say("working")', 'say(f"hard at work on {items}")'),
        ("stage/verb.py", 'what="items"', 'what="all items"'),
        ("stage/rules.py", "# a comment", "# two\n    # comments"),
        ("stage/rules.py", "return item < value", "return (\n        item < value  # smaller\n    )"),
        ("display/console.py", "print(message)", "print(message.upper())"),
        ("page_style.py", "green", "red"),
        ("config/store.py", "'store'", "'shop'"),
    ],
)
def test_words_and_looks_do_not_change_the_digest(root, file, old, new):
    before = provenance.digest("align.stage.verb")
    assert digest_after(root / file, old, new) == before


@pytest.mark.parametrize(("file", "old", "new"), [
    ("stage/rules.py", "item < value", "item <= value"),
    ("later.py", "3", "4"),
    ("config/cuts.py", "'cuts'", "'other'"),
    ("stage/verb.py", "track(items, what=", "track(items[1:], what="),
    ("stage/verb.py", "from align.display import html", "from align.display import html, figure"),
])  # fmt: skip
def test_code_changes_the_digest(root, file, old, new):
    before = provenance.digest("align.stage.verb")
    assert digest_after(root / file, old, new) != before


def test_a_digest_of_several_modules_is_of_all_their_files_once(root):
    both = provenance.digest("align.stage.verb", "align.stage.alone")
    assert both == provenance.digest("align.stage.alone", "align.stage.verb", "align.later")
    assert both not in (provenance.digest("align.stage.verb"), provenance.digest("align.stage.alone"))


def test_a_data_file_counts_to_a_module_beside_it_that_names_it(root):
    (root / "words.txt").write_text("a")
    (root / "stage/words.txt").write_text("a")
    digest_after(root / "stage/rules.py", "return item < value", "return item in 'words.txt'")
    before = provenance.digest("align.stage.verb"), provenance.digest("align.stage.alone")
    (root / "words.txt").write_text("a b")
    provenance._read.cache_clear()
    assert before == (provenance.digest("align.stage.verb"), provenance.digest("align.stage.alone"))
    (root / "stage/words.txt").write_text("a b")
    provenance._read.cache_clear()
    assert before[0] != provenance.digest("align.stage.verb")
    assert before[1] == provenance.digest("align.stage.alone")


def test_the_evaluation_depends_on_the_published_figures():
    folder = ROOT / "align/evaluate"
    source = (folder / "paper_table.py").read_text()
    named = provenance._DATA_FILE.findall("".join(provenance._said(ast.parse(source))))
    assert [name for name in named if (folder / name).is_file()] == ["published.yaml"]
    assert "align.evaluate.paper_table" in provenance.deciding("align.evaluate.evaluate")


def test_the_filter_depends_on_its_rules_and_not_on_the_console_or_on_models():
    deciding = provenance.deciding("align.filter.filter")
    assert {"align.filter.rules", "align.filter.page", "align.formats.filtered", "align.config.filter"} <= set(deciding)
    assert not provenance.NEUTRAL & set(deciding)
    assert not any(name.startswith(("align.model", "align.config.infrastructure")) for name in deciding)
    assert set(deciding) < set(provenance.closure("align.filter.filter"))


def test_ingest_reads_the_filters_cuts_and_does_not_depend_on_them():
    assert "align.config.filter" in provenance.closure("align.ingest.ingest")
    assert "align.config.filter" not in provenance.deciding("align.ingest.ingest")
    assert "align.pairs.text_cuts" in provenance.deciding("align.ingest.ingest")


def test_every_byte_neutral_or_untracked_module_exists():
    assert all(provenance.closure(name) for name in provenance.NEUTRAL)
    for stage, names in provenance.UNTRACKED.items():
        assert names <= set(provenance.closure(stage))  # or the entry is of no use
