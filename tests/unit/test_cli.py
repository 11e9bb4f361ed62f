import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import COMMANDS, STAGES, VERBS, build_parser, main
from tests.support import ROOT


def test_help_lists_the_verbs_in_pipeline_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    listed = re.findall(r"^    (\w+)", out, flags=re.MULTILINE)
    assert listed == [*STAGES, *COMMANDS]


def test_help_imports_nothing_heavy() -> None:
    # What keeps `align --help` under half a second, without timing a noisy machine.
    code = (
        "import sys, align.cli; align.cli.build_parser();"
        "print(sorted({'torch', 'pydantic', 'numpy', 'mlflow', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", [*STAGES, *COMMANDS])
def test_every_verb_is_a_module_with_main(verb: str) -> None:
    module = VERBS[verb].module
    assert module.rpartition(".")[2] == verb  # one guess finds it
    assert callable(importlib.import_module(module).main)
    build_parser(verb)


def test_an_align_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "align.cli", "filter", "--set", "filter.no_such_key=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("align: error:")
    assert "filter.no_such_key" in done.stderr


def test_an_unknown_verb_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["filtre"])
    assert stop.value.code == 2


def test_an_error_is_one_line_whatever_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "--params", "no\x1b[2J\nalign: faked"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(r"align: error: no\u001b[2J\nalign: faked")
    assert said.count("\n") == 1


def test_a_run_gets_the_values_of_a_profile_before_those_of_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "mine.yaml").write_text("filter: {min_words: 4, drop_filenames: false}\n")
    monkeypatch.setattr("align.run.os.execve", lambda _file, command, _env: commands.append(command))
    assert main(["run", "--profile", "mine.yaml", "--set", "filter.min_words=5"]) == 0
    assert commands[0][-6:] == [
        "--set", "filter.min_words=4", "--set", "filter.drop_filenames=false", "--set", "filter.min_words=5",
    ]  # fmt: skip
    assert main(["filter", "--profile", "none.yaml"]) == 1
