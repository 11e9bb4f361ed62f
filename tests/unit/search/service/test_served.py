"""A tokenizer of a stranger's model: its pattern may take 2^n steps over a text, and then ends by a panic of Rust."""

import asyncio
import os

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from align.errors import DataError
from align.model.tokenizer import TextTokenizer
from align.search.service import served as loading
from align.search.service.model_queue import ModelQueue, Work
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


def test_the_trial_gets_no_ctrl_c_of_the_terminal(tmp_path, monkeypatch):
    says = "import os, sys; open(sys.argv[1] + '.session', 'w').write(str(os.getsid(0)))"
    monkeypatch.setattr(loading, "_TRIAL", says)
    loading.require_quick(written(tmp_path, "a"))
    assert int((tmp_path / "tokenizer.json.session").read_text()) != os.getsid(0)


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

    async def run(model):
        asked = [model.do(Work(one, [text], [], lambda texts, images: len(texts))) for text in ("red", SLOW, "blue")]
        return await asyncio.gather(*asked, return_exceptions=True)

    model = ModelQueue()
    try:
        assert [type(found) for found in asyncio.run(run(model))] == [int, Panic, int]
        assert model.is_alive
    finally:
        model.stop()
