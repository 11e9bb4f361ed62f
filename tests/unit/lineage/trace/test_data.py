"""What a trace says of tars that others made: where they lie, and that nothing before them is known."""

from align.formats.shards import Manifest, Shard, Split
from align.lineage.trace.data import given_data
from align.lineage.trace.graph import Graph, missing


def test_it_names_the_tars_and_claims_no_gate(tmp_path):
    def row(split, name):
        return Shard(
            path=f"{split}/00000.tar", sha256="a" * 64, num_bytes=10_240, num_images=2, num_pairs=3,
            offsets_sha256="b" * 64, given=f"/data/{name}.tar",
        )  # fmt: skip

    splits = {"train": Split.of([row("train", "0"), row("train", "1")]), "val": Split.of([row("val", "1")])}
    manifest = Manifest(image_px=0, digest="d" * 64, splits=splits, left_out={"no text": 4})
    (tmp_path / "index").mkdir()
    (tmp_path / "index/manifest.json").write_text(manifest.model_dump_json(exclude_none=True))
    graph = Graph("align@champion", "a version")
    here = graph.nodes[given_data(graph, "d" * 64, tmp_path)]
    facts = dict(here.facts)
    assert (here.kind, here.state, here.brief) == ("shard", "warn", "not gated") and not graph.before(here)
    assert facts["tars"] == "2, from /data/0.tar to /data/1.tar" and facts["train"] == "4 pictures, 6 pairs"
    assert facts["gate"].startswith("not gated") and not missing(graph)
    given_data(graph, "e" * 64, tmp_path)
    assert "where the tars of data eeeeeeeeeeee lie is not known here" in missing(graph)[0]
