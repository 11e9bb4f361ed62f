import importlib
import json
import pickle
import re
import shlex
import subprocess
import sys
import time
from typing import get_args

import pytest

from align.cli import build_parser, main, read_params
from align.config.sections import SECTIONS
from align.errors import ConfigError, ServiceError, without_logins
from align.release.exchange.export import Format
from align.verbs import COMMANDS, JOURNEYS, STAGES, VERBS
from tests.support import ROOT
from tests.support.params import PARAMS_FILE


def test_help_lists_the_verbs_in_pipeline_order(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    listed = re.findall(r"^    (\w+)", out, flags=re.MULTILINE)
    assert listed == [*STAGES, *COMMANDS]


@pytest.mark.parametrize(("work", "dear"), [
    # What keeps `align VERB --help` under half a second, without timing a noisy machine.
    ("import align.cli; [align.cli.build_parser(verb).format_help() for verb in align.cli.VERBS]", "heavy"),
    ("import align.cli; align.cli.read_params(None, [])", {"numpy", "pyarrow"}),
    (
        "import flows.__main__, flows.plan, align.pipeline.runs, align.release.registration.register",
        {"prefect", "torch", "mlflow", "pandas"},
    ),
    (
        # transformers and these parts of torch cost three times what the rest does, in every rank and every search
        "import align.model.embedder, align.training.pretrain, align.search.search, align.evaluate.evaluate",
        {"transformers", "torch._dynamo", "torch.distributed.tensor", "sympy", "scipy.optimize"},
    ),
], ids=["help", "values", "programs that look", "what embeds or trains"])  # fmt: skip
def test_nothing_dear_is_imported_that_is_not_needed(work, dear):
    found = "{name.partition('.')[0] for name in now - before} - {'align'} - sys.stdlib_module_names"
    shown = found if dear == "heavy" else f"now & {dear}"
    code = f"import sys; before = set(sys.modules); {work}; now = set(sys.modules); print({shown})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_choices_are_what_the_verb_knows(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert f"--format {{{','.join(get_args(Format))}}}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [*STAGES, *COMMANDS])
def test_every_verb_is_a_module_with_main(verb):
    module = VERBS[verb].module
    assert module.rpartition(".")[2] == verb  # one guess finds it
    assert callable(importlib.import_module(module).main)
    build_parser(verb)


@pytest.mark.parametrize(("words", "said"), [
    ("filtre", "filtre: no such verb; did you mean filter? See align --help"),
    ("", "no verb; see align --help"),
    ("--set filter.min_words=4 filter", "--set: no verb; it comes first, as in align filter --set"),
    ("filter filter.min_words=4", "filter.min_words=4: values of params.yaml are changed by --set filter"),
    ("filter --sets filter.min_words=4 -x", "unknown arguments: --sets filter.min_words=4 -x; see align filter"),
])  # fmt: skip
def test_a_wrong_usage_is_one_line_that_says_what_is_right(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"align: error: {said}") and error.count("\n") == 1


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "_" in verb])
def test_dashes_are_as_good_as_underscores(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb.replace("_", "-"), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: align {verb} ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_names_its_values_and_has_two_examples(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    out = capsys.readouterr().out
    values = re.search(r"values: sections? (.+) of params\.yaml", out)
    assert values and set(re.findall("`(\\w+)`", values[1])) <= set(SECTIONS)
    examples = re.findall(r"^  (align .+)$", out.partition("examples:")[2], flags=re.MULTILINE)
    assert examples == list(VERBS[verb].examples)
    for example in examples:
        _parses(example)


def test_the_help_has_the_journeys_and_their_commands_parse(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert JOURNEYS.rstrip() in capsys.readouterr().out
    commands = re.findall(r"^  .*?(align [a-z_]+ .*)$", JOURNEYS, flags=re.MULTILINE)
    assert len(re.findall(r"^[a-z].*:$", JOURNEYS, flags=re.MULTILINE)) == 3 and len(commands) >= 5
    for command in commands:
        _parses(command)


def _parses(command):
    program, verb, *words = shlex.split(command, comments=True)
    assert program == "align"
    args = build_parser(verb).parse_args([verb, *words])  # exits where a word is wrong
    read_params(PARAMS_FILE, args.overrides)


def test_an_error_is_one_line_whatever_it_names(capsys):
    assert main(["filter", "--params", "no\x1b[2J\nalign: faked"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(r"align: error: no\u001b[2J\nalign: faked")
    assert said.err.count("\n") == 1 and said.out == ""


def test_a_run_gets_the_values_of_a_profile_before_those_of_set(tmp_path, monkeypatch):
    commands = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    (tmp_path / "mine.yaml").write_text("filter: {min_words: 4, drop_filenames: false}\n")
    monkeypatch.setattr("align.pipeline.run.os.execve", lambda _file, command, _env: commands.append(command))
    assert main(["run", "--profile", "mine.yaml", "--set", "filter.min_words=5"]) == 0
    asked = json.loads(commands[0][-1])
    assert commands[0][1:-1] == ["-m", "flows", "pipeline"]
    assert asked["overrides"] == {"filter.min_words": 5, "filter.drop_filenames": False}
    assert main(["plan", "--only", "data", "--from", "filter", "--json"]) == 0
    assert commands[1][1:4] == ["-m", "flows", "plan"] and commands[1][-1] == "--json"
    asked = json.loads(commands[1][4])
    assert (asked["only"], asked["from_stage"], asked["to_stage"]) == ("data", "filter", None)
    assert main(["filter", "--profile", "none.yaml"]) == 1


@pytest.mark.parametrize(("text", "shown"), [
    ("MLflow at http://bob:secret@host:5000: no", "MLflow at http://host:5000: no"),
    ("https://TOKEN@git.example/repo.git", "https://git.example/repo.git"),
    ("postgresql+psycopg://bob:p@ss@host/db", "postgresql+psycopg://host/db"),
    ("'http://bob:se/cr?e#t@host/x' is no address", "'http://host/x' is no address"),
    ("http://a:b@c/ and ftp://d:e@f/", "http://c/ and ftp://f/"),
    ("'https://h/a?n=1&X-Amz-Signature=ab%2F': 403", "'https://h/a?n=1&X-Amz-Signature=...': 403"),
    ("https://u:p@h/a?sig=x&st=1#access_token=y", "https://h/a?sig=...&st=1#access_token=..."),
    *((same, same) for same in (
        "https://example.com/@user/picture@2x.png",
        "https://example.com/a?design=1&signature_of=me&tokens=3&size=4",
        "http://[::1]:80/a@b",
        "http://host:8080/a@b",
        "s3://bucket/a@b",
        "git@example.com:a/b.git",
        "somebody@example.com",
        '{"url":"https://example.com","by":"me@example.com"}',
    )),
])  # fmt: skip
def test_logins_are_cut_out(text, shown):
    assert without_logins(text) == shown
    assert str(ServiceError(text)) == shown


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "http://" + "a:" * 150_000, "http://a:b" * 30_000, "?sig&" * 60_000, "?aPi" * 70_000]
)
def test_long_lines_take_no_longer_than_their_length(text):
    begun = time.thread_time()
    assert without_logins(f"{text} x@y") == f"{text} x@y"
    assert time.thread_time() - begun < 10  # by the square of it, half an hour


def test_an_error_comes_back_from_another_process_as_it_was():
    error = pickle.loads(pickle.dumps(ConfigError("http://a:b@c")))
    assert type(error) is ConfigError and str(error) == "http://c"
