"""`align serve`: what it refuses before it serves, and what a checkout knows of a picture."""

import socket

import pytest

from align.arguments.commands import READY
from align.cli import main
from align.config.params import Params
from align.errors import DataError
from align.filter.rules import RULES
from align.formats.image_index import IndexedImage, IndexHeader
from align.formats.shards import read_manifest
from align.lineage.versions.raw_pairs import find_pairs
from align.serve import _PairOf, _service, login_of
from tests.support import small_data
from tests.support.params import PARAMS_FILE, load_params
from tests.support.small_data import Pair


def serve(*words):
    return main(["serve", "--local", "--params", str(PARAMS_FILE), *words])


def test_others_reach_it_only_with_a_login(monkeypatch, capsys):
    monkeypatch.setenv("ALIGN_SERVER_BIND", "0.0.0.0")
    assert serve() == 1
    assert "so ALIGN_SEARCH_LOGIN=user:password is needed" in capsys.readouterr().err
    monkeypatch.setenv("ALIGN_SEARCH_LOGIN", "word")
    assert serve() == 1
    assert "expected user:password" in capsys.readouterr().err


@pytest.mark.parametrize("own", [["--local"], ["--ready", "ready"]])
def test_a_folder_is_not_served_where_models_have_to_be_signed(own, monkeypatch, capsys):
    monkeypatch.setenv("ALIGN_TRUSTED_KEY", "/a/key.pub")
    assert main(["serve", "--port", "0", "--params", str(PARAMS_FILE), *own]) == 1
    assert "ALIGN_TRUSTED_KEY is set, and only registered models are signed" in capsys.readouterr().err


def test_who_does_not_know_the_login_is_told_where_it_is(tmp_path, monkeypatch):
    """In a container or a cluster it is a secret of theirs, and there is no file."""
    monkeypatch.chdir(tmp_path)
    elsewhere = "of ALIGN_SEARCH_LOGIN, which the server was started with"
    assert login_of("ann:secret") == elsewhere
    (tmp_path / ".align").mkdir()
    (tmp_path / ".align/login_search").write_text("align:of this checkout\n")
    assert login_of("align:of this checkout") == "in .align/login_search"
    assert login_of("ann:secret") == elsewhere
    (tmp_path / ".align/login_search").write_bytes(b"\xff\xfe")
    assert login_of("ann:secret") == elsewhere


def test_a_port_that_is_taken_is_said_in_one_line(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert serve("--port", str(port)) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [f"align: error: port {port} of 127.0.0.1 is taken by another program: choose another with --port"]


def test_without_a_registry_the_command_to_type_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for made, command in (
        ("nothing", "dvc repro && align serve --local"), (READY, f"align serve --ready {READY}"),
        ("data/index", "align serve --local"),
    ):  # fmt: skip
        (tmp_path / made).mkdir(parents=True)
        (tmp_path / made / "index.json").touch()
        with pytest.raises(DataError, match=f"; without a registry: `{command}`$"):
            _service(load_params(), None, None)


def test_a_wrong_port_is_said(monkeypatch, capsys):
    monkeypatch.setenv("ALIGN_SEARCH_PORT", "70000")
    assert serve() == 1
    assert "ALIGN_SEARCH_PORT=70000: expected a port" in capsys.readouterr().err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("known")
    small_data.write(root, [Pair("a red fox", 1), Pair("short", 2, reason="text_too_short")])
    small_data.write_shards(root)
    return root


def known(root, key, sha256=None, digest=None, data=None):
    """What `align serve` says of a picture of `root`; `data`: the checkout's folders where they are not there."""
    values = load_params().values
    names = ("raw", "filtered", "shards", "policy", "reports")
    paths = {name: str((root if name == "shards" else data or root) / name) for name in names}
    params = Params(values | {"paths": values["paths"] | paths}, PARAMS_FILE)
    [row] = find_pairs(root / "raw", "key", [key])
    item = IndexedImage(key, sha256 or row["sha256"], ("a red fox",), "train", "train/00000.tar", 0, 1, (key,))
    rules = {"text_too_short": "num_words < 3", "image_nsfw": None, "a_rule_of_tomorrow": "x > 1"}
    header = IndexHeader(
        model_digest="m", shards_digest=digest or read_manifest(root / "shards").digest, num_items=1, width=4,
        thumbnail_px=0, rules=rules, files={}, vectors_sha256={},
    )  # fmt: skip
    return _PairOf(params)(item, header)


def test_a_picture_leads_to_its_row_and_to_every_rule(data):
    shown = known(data, "000000000")
    assert (shown.text, shown.kept) == ("a red fox", True)
    assert [rule.rule for rule in shown.rules] == list(RULES) and {rule.verdict for rule in shown.rules} <= {
        "passes",
        "off",
    }
    assert not [note for note in shown.notes if "another version" in note]


def test_data_of_another_version_is_said_and_another_picture_is_not_shown(data):
    assert any("another version than the index" in note for note in known(data, "000000000", digest="0" * 64).notes)
    shown = known(data, "000000000", sha256="0" * 64)
    assert "another picture with key 000000000" in shown.notes[0] and shown.kept
    assert {rule.rule for rule in shown.rules} == {"text_too_short", "image_nsfw", "a_rule_of_tomorrow"}


def test_without_the_data_the_index_says_what_it_knows(data, tmp_path):
    shown = known(data, "000000000", data=tmp_path)
    assert shown.notes == ["The data itself is not here. This is what the index knows."] and shown.text == "a red fox"
    assert [(rule.rule, rule.drops_where, rule.verdict, rule.values) for rule in shown.rules] == [
        ("image_nsfw", None, "off", ""), ("text_too_short", "num_words < 3", "passes", ""),
        ("a_rule_of_tomorrow", "x > 1", "passes", ""),
    ]  # fmt: skip
    assert shown.rules[0].what and shown.rules[2].what == ""
