"""A running service shows nobody what is taken down, from one look at the policy to the next."""

import hashlib
import json
import time
import urllib.error
import urllib.request

import pytest

from align.errors import CorruptError, FormatError
from align.formats.indexed_images import IndexedImages
from align.formats.policy import OPTED_OUT
from align.search.service.champion import Champion
from align.search.service.served import Release
from align.search.service.take_downs import TakeDowns
from tests.support.colour_index import PAGE
from tests.support.served import Releases, listening, served, service, take_downs

HEADER = "kind,value,reason,added\n"
POLL_S = 0.05


class Policy:
    """A policy folder, and the service that obeys it."""

    def __init__(self, folder, url):
        self.file, self.url = folder / OPTED_OUT, url

    def ask(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.loads(body) if (body := answer.read())[:1] == b"{" else body

    def status(self, path):
        try:
            self.ask(path)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def write(self, *entries):
        self.file.write_text(HEADER + "".join(f"{entry},,2026-01-02\n" for entry in entries))

    def obeyed(self, *entries):
        """The health of the service once it obeys these entries."""
        self.write(*entries)
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        end = time.monotonic() + 20
        while (health := self.ask("/health"))["take_downs"] != digest and time.monotonic() < end:
            time.sleep(POLL_S / 5)
        assert health["take_downs"] == digest
        return dict(health)

    def said(self, words):
        """The health of the service once a warning has these words."""
        end = time.monotonic() + 20
        while words not in " ".join((health := self.ask("/health"))["warnings"]) and time.monotonic() < end:
            time.sleep(POLL_S / 5)
        assert words in " ".join(health["warnings"])
        return dict(health)


@pytest.fixture(scope="module")
def policy(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    (folder / OPTED_OUT).write_text(HEADER)
    with service(world, served(world), folder, poll_s=POLL_S) as made:
        made.champion.start()
        with listening(made) as url:
            yield Policy(folder, url)


def keys(answer):
    return [hit["key"] for hit in answer["hits"]]


@pytest.mark.parametrize("kind", ["url", "page", "host", "image_id"])
def test_a_picture_is_gone_while_the_service_runs(policy, kind):
    all_of_them = policy.obeyed()["num_images"]
    before = policy.ask("/search?text=blue&limit=4")
    gone = before["hits"][0]
    large = f"/image/{gone['key']}?large=true"
    own = policy.ask(f"/item/{gone['key']}")
    assert policy.status(gone["image"]) == policy.status(large) == 200
    entries = {
        "url": f"url,{own['found'][0]['url'].replace('https://', 'http://WWW.')}?utm_source=x",
        "page": f"url,{PAGE}", "host": "host,example.com", "image_id": f"image_id,{gone['image_id']}",
    }  # fmt: skip
    health = policy.obeyed(entries[kind])
    assert health["num_images"] + health["num_taken_down"] == all_of_them
    assert health["num_taken_down"] >= 1
    for path in (gone["image"], large, f"/item/{gone['key']}"):
        assert policy.status(path) == 404
    assert policy.status(f"/search?key={gone['key']}") == 400
    after = policy.ask("/search?text=blue&limit=4")
    assert gone["key"] not in keys(after) and gone["key"] not in keys(policy.ask("/search?text=blue&split=train"))
    if kind in ("url", "image_id"):  # of one picture: the next take its rank
        assert health["num_taken_down"] == 1
        assert keys(after)[:3] == keys(before)[1:] and len(after["hits"]) == 4
        assert [hit["rank"] for hit in after["hits"]] == [1, 2, 3, 4]
        assert policy.status(f"/search?text=blue&words={gone['texts'][0].split()[1]}") == 200
    assert policy.obeyed()["num_taken_down"] == 0
    assert policy.ask("/search?text=blue&limit=4") == before


def test_a_damaged_or_absent_list_leaves_the_one_before_in_force(policy):
    first = policy.ask("/search?text=blue&limit=1")["hits"][0]
    policy.obeyed(f"image_id,{first['image_id']}")
    digest = policy.ask("/health")["take_downs"]
    for damage in (lambda: policy.write("host,https://no host/"), lambda: policy.file.unlink()):
        damage()
        health = policy.said("hold as they were before")
        assert (health["ready"], health["take_downs"], health["num_taken_down"]) == (True, digest, 1)
        assert policy.status(first["image"]) == 404
    assert policy.obeyed()["warnings"] == []


def test_a_service_starts_without_a_list_and_not_with_a_damaged_one(tmp_path):
    absent = TakeDowns(tmp_path / "policy")
    assert absent.digest is None and "No such file or directory, so no take-down is obeyed" in str(absent.problem)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / OPTED_OUT).write_text("nonsense")
    with pytest.raises(FormatError, match="the first line must be"):
        TakeDowns(tmp_path / "policy")


def test_the_next_release_is_masked_before_it_is_served(world, tmp_path):
    (tmp_path / OPTED_OUT).write_text(f"{HEADER}host,example.com,,2026-01-02\n")
    releases = Releases(Release("1" * 64, "align", 1))
    followed = Champion(releases, 3600, take_downs(tmp_path), lambda release, folders: served(world, release.digest))
    for number in (1, 2):
        releases.now = Release(str(number) * 64, "align", number)
        followed.look()
        assert followed.served is not None and followed.served.release.digest == str(number) * 64
        assert followed.served.index.num_images < len(followed.served.index.items)


def test_of_an_index_that_cannot_be_masked_nothing_is_served(world, tmp_path, monkeypatch):
    def damaged(self, image_ids, covers):
        raise CorruptError("items.parquet: damaged")

    (tmp_path / OPTED_OUT).write_text(HEADER)
    release = Release("1" * 64, "align", 1)
    followed = Champion(Releases(release), 3600, take_downs(tmp_path), lambda release, folders: served(world))
    followed.look()
    monkeypatch.setattr(IndexedImages, "listed", damaged)
    (tmp_path / OPTED_OUT).write_text(f"{HEADER}host,example.com,,2026-01-02\n")
    followed.obey()
    assert followed.served is None
    assert "cannot be obeyed, so nothing is served: items.parquet: damaged" in str(followed.problem)
