"""What a trace says of tars that others made: where they lie, and that nothing before them is known."""

from align.formats.shards import Manifest, Shard, Split
from align.lineage.trace.data import given_data


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
    here = given_data("d" * 64, tmp_path)
    facts = dict(here.facts)
    assert (here.kind, here.state, here.title) == ("shards", "warn", "data dddddddddddd, not gated")
    assert facts["tars"] == "2, from /data/0.tar to /data/1.tar" and facts["train"] == "4 pictures, 6 pairs"
    assert facts["gate"] == "no rule and no gate has seen it" and not here.missing
    assert "where its tars lie is not known here" in given_data("e" * 64, tmp_path).missing[0]
