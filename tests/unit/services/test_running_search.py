"""What `align opt_out` learns of services that run."""

import hashlib
import shutil
import socket

import pytest

from align.cli import main
from align.errors import ConfigError
from align.formats.policy import OPTED_OUT
from align.services.running_search import take_down_lines
from tests.support import ROOT, colour_index
from tests.support.served import listening, served, service


def test_each_service_says_which_list_it_obeys(tmp_path, monkeypatch, capsys):
    colour_index.build(tmp_path)
    shutil.copytree(ROOT / "data/policy", tmp_path / "data/policy")
    monkeypatch.chdir(tmp_path)
    with (
        socket.socket() as silent,
        service(tmp_path, served(tmp_path), tmp_path / "data/policy", poll_s=0.05) as follows,
        service(tmp_path, served(tmp_path), tmp_path / "absent") as stays,
        listening(follows) as one,
        listening(stays) as other,
    ):
        silent.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{silent.getsockname()[1]}"
        follows.champion.start()
        monkeypatch.setenv("ALIGN_SEARCH_URL", f"{one} {nobody}")
        (tmp_path / "hosts").write_text("example.com\n")
        assert main(["opt_out", "--hosts", "hosts", "--reason", "asked"]) == 0
        said = capsys.readouterr().err
        assert f"the search at {one} obeys this list: it masks {len(served(tmp_path).index.items)} of its" in said
        assert f"no search answers at {nobody}" in said
        monkeypatch.setenv("ALIGN_SEARCH_URL", other)
        digest = hashlib.sha256((tmp_path / "data/policy" / OPTED_OUT).read_bytes()).hexdigest()
        assert list(take_down_lines(digest, 0.1)) == [
            f"the search at {other} STILL SHOWS what is new here: it obeys no list; its /health says why"
        ]
    monkeypatch.setenv("ALIGN_SEARCH_URL", "file:///etc/passwd")
    with pytest.raises(ConfigError, match="not the address of a service"):
        list(take_down_lines("", 0))
