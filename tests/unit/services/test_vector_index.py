"""Nearest neighbours, exact and approximate. Small indexes are approximate where `exact_below` is 1."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from align.errors import CorruptError, DataError
from align.services import vector_index
from align.services.vector_index import RangeIndex, VectorIndex

NUM, WIDTH = 3000, 32


def clustered(num, seed, num_clusters=60):
    centres = np.random.default_rng(0).normal(size=(num_clusters, WIDTH))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(num_clusters, size=num)] + 0.5 * rng.normal(size=(num, WIDTH))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


VECTORS, QUERIES = clustered(NUM, 1), clustered(50, 2)


def build(path, vectors=VECTORS, *, exact=False, batch=700):
    path.parent.mkdir(parents=True, exist_ok=True)
    batches = (vectors[start : start + batch] for start in range(0, len(vectors), batch))
    return VectorIndex.build(batches, path, num_vectors=len(vectors), exact_below=len(vectors) + 1 if exact else 1)


@pytest.fixture(scope="module")
def approximate(tmp_path_factory):
    return build(tmp_path_factory.mktemp("index") / "vectors.faiss")


@pytest.fixture
def through_lists(monkeypatch):
    """Even a filter that leaves little is answered from the lists, few of them at first."""
    monkeypatch.setattr(vector_index, "_EXACT_ROWS", 0)
    monkeypatch.setattr(vector_index, "_LISTS_PER_QUERY", 10)
    monkeypatch.setattr(vector_index, "_LEAST_CANDIDATES", 40)


def nearest(queries, k, allowed=None):
    """By a full sort of what an approximate index knows best: float16."""
    cosines = queries @ VECTORS.astype(np.float16).astype(np.float32).T
    if allowed is not None:
        cosines[:, ~allowed] = -2
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def recall(found, right):
    return float(np.mean([len({*one} & {*other}) / len(other) for one, other in zip(found, right, strict=True)]))


def test_a_small_index_that_was_opened_before_does_not_bound_a_larger_one(tmp_path):
    RangeIndex.write(VECTORS.astype(np.float16), tmp_path / "views.faiss", all_below=0)
    build(tmp_path / "small.faiss", VECTORS[:100])
    VectorIndex.load(tmp_path / "small.faiss")
    queries, ids = RangeIndex(tmp_path / "views.faiss").above(VECTORS[:50], 0.999)
    assert {*zip(queries.tolist(), ids.tolist(), strict=True)} >= {(row, row) for row in range(50)}


@pytest.mark.usefixtures("any_blocks")
def test_neighbours_equal_those_of_a_full_sort_and_ties_go_by_id(tmp_path):
    vectors = VECTORS[:200].copy()
    vectors[50] = vectors[120] = vectors[7]
    index = build(tmp_path / "vectors.faiss", vectors, exact=True)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.faiss"]  # no second file: it is exact
    for opened in (index, VectorIndex.load(tmp_path / "vectors.faiss")):
        scores, ids = opened.search(vectors[7:8], 300)
        expected = np.argsort(-(vectors @ vectors[7]), kind="stable")
        assert ids[0][:3].tolist() == [7, 50, 120]
        assert ids.shape == (1, 200)  # no more than exist
        assert scores[0] == pytest.approx((vectors @ vectors[7])[expected], abs=1e-5)
        assert np.array_equal(opened.vector(3), vectors[3])


def test_the_size_decides_and_neither_side_of_it_loses_a_vector(tmp_path):
    for number, exact_below in enumerate((299, 300, 301)):
        path = tmp_path / f"{number}.faiss"
        index = VectorIndex.build([VECTORS[:300]], path, num_vectors=300, exact_below=exact_below)
        assert path.with_suffix(".npy").exists() == (exact_below < 301)
        assert sorted(index.search(VECTORS[:1], 300)[1][0]) == list(range(300))


@pytest.mark.usefixtures("through_lists")
def test_the_lists_find_what_is_near_and_score_it_again(approximate):
    scores, ids = approximate.search(QUERIES, 10)
    assert recall(ids, nearest(QUERIES, 10)) > 0.9
    cosines = np.take_along_axis(QUERIES @ VECTORS.T, ids, axis=1)
    assert scores == pytest.approx(cosines, abs=1e-3)  # four bits alone: off by 0.05
    assert (np.diff(scores, axis=1) <= 0).all()
    one_by_one = np.concatenate([approximate.search(query[np.newaxis], 10)[1] for query in QUERIES])
    assert np.array_equal(one_by_one, ids)


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize("k", [400, NUM, NUM + 7])
def test_a_large_part_of_all_is_exact(approximate, k):
    _, ids = approximate.search(QUERIES[:3], k)
    assert np.array_equal(ids, nearest(QUERIES[:3], min(k, NUM)))


@pytest.mark.parametrize("exact", [True, False])
def test_a_filter_narrower_than_k_gives_all_that_it_leaves(tmp_path, exact):
    index = build(tmp_path / "vectors.faiss", exact=exact)
    allowed = np.zeros(NUM, dtype=np.bool_)
    allowed[[5, 17, 2999]] = True
    _, ids = index.search(QUERIES[:4], 10, allowed)
    assert np.array_equal(ids, nearest(QUERIES[:4], 3, allowed))
    scores, ids = index.search(QUERIES[:4], 10, np.zeros(NUM, dtype=np.bool_))
    assert scores.shape == ids.shape == (4, 0)


@pytest.mark.usefixtures("through_lists")
def test_a_filter_finds_what_is_far_from_the_query(approximate):
    allowed = np.random.default_rng(3).random(NUM) < 0.15
    _, ids = approximate.search(QUERIES, 10, allowed)
    assert allowed[ids].all()
    assert recall(ids, nearest(QUERIES, 10, allowed)) > 0.9
    far = VECTORS @ QUERIES[0] < np.sort(VECTORS @ QUERIES[0])[400]  # in no list near the query
    _, ids = approximate.search(QUERIES[:1], 10, far)
    assert far[ids].all() and len({*ids[0]}) == 10


def test_equal_vectors_give_equal_bytes(tmp_path):
    build(tmp_path / "here" / "vectors.faiss", batch=11)
    program = (
        "import faiss, numpy as np; from pathlib import Path; from tests.unit.services.test_vector_index import build; "
        f"faiss.omp_set_num_threads(3); build(Path({str(tmp_path / 'there' / 'vectors.faiss')!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).iterdir()}
        for name in ("here", "there")
    ]
    assert digests[0] == digests[1] and set(digests[0]) == {"vectors.faiss", "vectors.npy"}


def test_more_or_fewer_vectors_than_announced(tmp_path):
    for exact_below in (1, 100):
        for num_vectors in (9, 11):
            with pytest.raises(DataError, match=f"10 vectors to index, not {num_vectors}"):
                VectorIndex.build(
                    [VECTORS[:10]], tmp_path / "v.faiss", num_vectors=num_vectors, exact_below=exact_below
                )


@pytest.mark.parametrize("exact", [True, False])
def test_damaged_files_are_refused(tmp_path, exact):
    path = tmp_path / "vectors.faiss"
    build(path, exact=exact)
    good = path.read_bytes()
    for size in (0, 3, 4, 40, 60, len(good) // 3, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(CorruptError, match=r"run `align index` again"):
            VectorIndex.load(path)
    path.write_bytes(b"IxPT" + good[4:])  # an index of faiss, but none that this project writes
    with pytest.raises(CorruptError, match="not a faiss index of this project"):
        VectorIndex.load(path)
    path.unlink()
    with pytest.raises(DataError, match="run `align index` first"):
        VectorIndex.load(path)


@pytest.mark.parametrize("exact", [True, False])
def test_lengths_that_lie_are_refused(tmp_path, exact):
    """Every number of the header, set to what a hostile file might say: nothing is allocated, nothing crashes."""
    path = tmp_path / "vectors.faiss"
    build(path, exact=exact)
    good = path.read_bytes()
    places = [(4, 4), (8, 8), (33, 4)] + ([(37, 8)] if exact else [(37, 8), (53 + 4, 4), (53 + 8, 8), (53 + 37, 8)])
    for offset, length in places:
        for value in (0, 1, NUM + 1, 1 << 30, 1 << 44):
            number = (value % (1 << (8 * length))).to_bytes(length, "little")
            if good[offset : offset + length] == number:
                continue  # the truth
            path.write_bytes(good[:offset] + number + good[offset + length :])
            with pytest.raises(CorruptError):
                VectorIndex.load(path)


def test_rows_of_another_index_are_refused(tmp_path, approximate):
    path = tmp_path / "vectors.faiss"
    build(path)
    rows = path.with_suffix(".npy")
    good = rows.read_bytes()
    np.save(rows, VECTORS[:, :31].astype(np.float16))
    with pytest.raises(CorruptError, match="other rows"):
        VectorIndex.load(path)
    np.save(rows, VECTORS)
    with pytest.raises(CorruptError, match="not the rows"):
        VectorIndex.load(path)
    for damaged in (good[:-1], good[:5], b"", good.replace(b"(3000, 32)", b"(9000, 32)")):
        rows.write_bytes(damaged)
        with pytest.raises(CorruptError, match="not the rows"):
            VectorIndex.load(path)
    rows.unlink()
    with pytest.raises(CorruptError, match="not the rows"):
        VectorIndex.load(path)


def test_lists_that_name_other_vectors_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "vectors.faiss"
    build(path)
    good = path.read_bytes()
    ids = np.frombuffer(good, dtype="<i8", count=5, offset=len(good) - 40)  # the file ends with a list's ids
    assert ((ids >= 0) & (ids < NUM)).all()
    path.write_bytes(good[:-40] + (ids + NUM).tobytes())
    monkeypatch.setattr(vector_index, "_EXACT_ROWS", 0)
    with pytest.raises(CorruptError, match="do not exist"):
        VectorIndex.load(path).search(VECTORS[ids[-1:]], 10)
