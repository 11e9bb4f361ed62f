"""The ready search in git, which `make try` serves: whole, small, and readable by this code."""

from align.arguments.commands import READY
from align.formats.image_index import ImageIndex
from align.formats.model_folder import model_digest
from align.formats.ready import open_ready
from align.model.embedder import Embedder
from align.search.ready import MAX_BYTES
from align.services.vector_index import VectorIndex
from tests.support import ROOT


def test_it_is_whole_and_finds_what_it_should() -> None:
    folder = ROOT / READY
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    ready = open_ready(folder)
    index = ImageIndex.load(ready.index, VectorIndex.load)
    assert index.header.model_digest == model_digest(ready.model)
    assert index.header.num_items == ready.manifest.made_from.num_images > 1000
    query = Embedder.load(ready.model).embed_texts(["red heart"])[0]
    hits = index.search(query, 5)
    assert any("heart" in " ".join(hit.item.texts) for hit in hits)
    assert index.thumbnail(hits[0].item.key).startswith(b"\xff\xd8")
