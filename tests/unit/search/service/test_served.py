"""A tokenizer of a stranger's model: its pattern may take 2^n steps over a text, and then ends by a panic of Rust."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from align.errors import DataError
from align.model.tokenizer import TextTokenizer
from align.search.service import served as loading
from align.search.service.batching import Batcher, Work
from tests.support.served import ColourEmbedder, served

SLOW = "a" * 40 + "b"


def written(folder, pattern):
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_text_that_its_pattern_gives_up_on_is_an_error(tmp_path):
    tokenizer = TextTokenizer.load(written(tmp_path, "(a|a|aa)+$"), 16)
    assert tokenizer.ids(["b"]) == [[0]]
    with pytest.raises(DataError, match="retry-limit"):
        tokenizer.ids(["b", SLOW])


def test_it_is_tried_before_it_is_served(tmp_path):
    loading.require_quick(written(tmp_path, r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"))
    with pytest.raises(DataError, match="tokenizer"):
        loading.require_quick(written(tmp_path, "(a|a|aa)+$"))


#: A service whose main thread has other things to do while a tokenizer is tried, which takes for ever.
SERVICE = """
import sys, threading
from pathlib import Path
from align.search.service import served
served._TRIAL += "import os, time; os.symlink(str(os.getpid()), sys.argv[1] + '.tried'); time.sleep(600)"
threading.Thread(target=served.require_quick, args=[Path(sys.argv[1])]).start()
"""


def lives(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.costs(8, "a process that imports what a service needs, and its child")
def test_the_trial_gets_no_signal_of_the_terminal_and_ends_with_the_service(tmp_path):
    note = written(tmp_path, "a") / "tokenizer.json.tried"
    service = subprocess.Popen([sys.executable, "-c", SERVICE, str(tmp_path)], start_new_session=True)
    try:
        while not note.is_symlink():
            assert service.poll() is None
            time.sleep(0.05)
        trial = int(note.readlink().name)
        assert os.getsid(trial) != service.pid  # to whose session Ctrl-C goes
    finally:
        service.kill()
        service.wait()
    while lives(trial):  # else the test's own limit ends it
        time.sleep(0.05)


class Panic(BaseException):
    """As of Rust code: no Exception."""


class Panics(ColourEmbedder):
    """Fails over SLOW."""

    def embed_texts(self, texts):
        if SLOW in (texts := list(texts)):
            raise Panic
        return super().embed_texts(texts)


def test_a_panic_is_of_its_request_alone_and_the_thread_lives_on(world):
    one = served(world)
    object.__setattr__(one, "embedder", Panics())

    async def run(batcher):
        asked = [batcher.do(Work(one, [text], [], lambda texts, images: len(texts))) for text in ("red", SLOW, "blue")]
        return await asyncio.gather(*asked, return_exceptions=True)

    batcher = Batcher()
    try:
        assert [type(found) for found in asyncio.run(run(batcher))] == [int, Panic, int]
        assert batcher.is_alive
    finally:
        batcher.stop()
