"""Near-duplicates of evaluation images by embedding: against brute force, planted copies, and pairs labelled by eye."""

import io
import math
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from align.config.filter import FilterConfig, ModelFile
from align.durable.files import sha256_folder
from align.durable.processes import in_threads
from align.errors import CorruptError, DataError
from align.filter.decide import packaged_towers, similarities
from align.filter.near_duplicates import (
    Fingerprints,
    by_content,
    matches_by_embedding,
    matches_by_hash,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, distinct_pictures, held
from align.model.embedder import Embedder
from align.pairs.perceptual_hash import THUMBNAIL_PX, image_signals, perceptual_hash
from align.pairs.picture import decode
from align.services import vector_index
from align.services.vector_index import RangeIndex
from tests.support import library_models, tiny_model
from tests.support.near_duplicates.edits import EDITS
from tests.support.near_duplicates.labelled import found_by_embedding, found_by_hash, labelled_pairs
from tests.support.near_duplicates.pictures import archive_pictures, drawn, evaluation_pictures
from tests.support.near_duplicates.recall import recall
from tests.support.params import load_params
from tests.support.warc_records import picture, png_header

WIDTH = 32
CONFIG = load_params().section(FilterConfig)

#: What CI measures, and the least share of copies that must be found.
FLOORS = {"re-encode": 0.99, "resize": 0.99, "10 % crop": 0.9, "flip": 0.9}
#: Of the sample's archive; see docs/near-duplicates.md.
MOST_FALSE_POSITIVES, MOST_OF_A_FOURTH = 55, 20


@pytest.fixture(scope="module")
def network():
    return ImageNetwork(None, None, "cpu", 2)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def rows():
    """6,000 training images around 150 points, and 90 evaluation images of 3 views near some of them."""
    random = np.random.default_rng(0)
    points = random.normal(size=(150, WIDTH))
    train = points[np.arange(6000) % 150] + random.normal(size=(6000, WIDTH)) * 0.25
    tests = train[: 90 * 60 : 60, None] + random.normal(size=(90, 3, WIDTH)) * 0.1
    return (
        {f"{number:04d}": row for number, row in enumerate(unit(train))},
        {f"set/{number}": row for number, row in enumerate(unit(tests))},
    )


def matched(folder, shards, tests, cut=CONFIG.near_duplicate_cosine_above, **index):
    write_embeddings(folder / "tests.arrow", tests.items(), WIDTH)
    references = read_embeddings(folder / "tests.arrow")
    RangeIndex.write(references.vectors, folder / "tests.faiss", **index)
    find = RangeIndex(folder / "tests.faiss").above
    matches = [one for shard in shards for one in matches_by_embedding(shard.items(), references, find, cut)]
    listed = [((match.image_id, match.reference), match.cosine) for match in matches]
    assert len(dict(listed)) == len(listed)  # each pair once
    return dict(listed)


@pytest.mark.usefixtures("any_blocks")
def test_against_brute_force(tmp_path, rows):
    train, tests = rows
    matrix = np.stack(list(train.values())).astype(np.float64)
    expected = {
        (image_id, name): float(cosine)
        for name, views in tests.items()
        for image_id, cosine in zip(train, (matrix @ views.T.astype(np.float64)).max(axis=1).round(4), strict=True)
        if cosine > CONFIG.near_duplicate_cosine_above
    }
    assert 80 < len(expected) < 1000
    assert matched(tmp_path, [train], tests) == expected
    of_lists = matched(tmp_path, [train], tests, all_below=0)
    assert of_lists.items() <= expected.items()
    assert len(of_lists) >= 0.99 * len(expected)


@pytest.mark.parametrize("index", [{}, {"all_below": 0}], ids=["all", "lists"])
def test_order_shards_and_threads_do_not_change_what_is_found(tmp_path, rows, index):
    train, tests = rows
    shuffled = [list(train)[row] for row in np.random.default_rng(1).permutation(len(train))]
    shards = [{name: train[name] for name in shuffled[start : start + 1700]} for start in range(0, 6000, 1700)]
    one = matched(tmp_path, [train], tests, **index)
    assert matched(tmp_path, [{}, *shards, {}], tests, **index) == one
    with vector_index._one_thread():
        assert matched(tmp_path, [train], tests, **index) == one
    if not index:  # lists are made of the tests themselves
        few = dict(list(tests.items())[:7])
        assert matched(tmp_path, [train], few) == {pair: cosine for pair, cosine in one.items() if pair[1] in few}
        assert matched(tmp_path, [train], dict(reversed(tests.items()))) == one


def test_the_cut_itself_is_not_above_it(tmp_path):
    train = {"above": np.eye(WIDTH)[0], "at": np.eye(WIDTH)[0] * 0.975, "below": np.eye(WIDTH)[0] * 0.97}
    halves = {name: row.astype(np.float16) for name, row in train.items()}
    cut = round(float(halves["at"][0]), 4)  # 0.975 in two bytes
    tests = {"t": np.eye(WIDTH)[:1].astype(np.float16)}
    assert matched(tmp_path, [halves], tests, cut) == {("above", "t"): 1.0}


def test_nothing_to_compare(tmp_path):
    one = {"a": unit(np.ones(WIDTH))}
    assert matched(tmp_path, [one], {}) == {}
    assert matched(tmp_path, [{}], {"t": one["a"][None]}) == {}
    assert matched(tmp_path, [], {"t": one["a"][None]}) == {}
    assert matched(tmp_path, [one], {"t": one["a"][None]}) == {("a", "t"): pytest.approx(1, abs=1e-3)}


def test_files_are_the_same_bytes_and_broken_ones_are_named(tmp_path):
    rows = [(str(number), unit(np.random.default_rng(number).normal(size=(2, WIDTH)))) for number in range(1500)]
    for name in ("a", "b"):
        write_embeddings(tmp_path / name, iter(rows), WIDTH)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_embeddings(tmp_path / "a")
    assert read.names == [name for name, _ in rows for _ in range(2)]
    assert read.vectors.tobytes() == np.concatenate([vectors for _, vectors in rows]).tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:5000])
    for name in ("b", "gone"):
        with pytest.raises(DataError, match=f"{name}: no embeddings here"):
            read_embeddings(tmp_path / name)


def test_clusters_do_not_depend_on_threads():
    script = (
        "import hashlib, numpy as np; from align.services.vector_index import kmeans; "
        "centroids = kmeans(np.random.default_rng(0).normal(size=(3000, 96)).astype(np.float32), 64); "
        "assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5), centroids; "
        "print(centroids.shape, hashlib.sha256(centroids.tobytes()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "5")
    }
    assert len(printed) == 1
    assert printed.pop().startswith("(64, 96)")


def test_copies_of_evaluation_images_are_found(sample, tmp_path, network):
    pictures = evaluation_pictures(sample)
    planted = {name: pictures[name] for name in drawn(pictures, 10)}
    rows = recall(planted, planted, network, tmp_path, kinds=list(FLOORS))
    for kind, floor in FLOORS.items():
        shares = [row.by_rule for row in rows if row.kind == kind]
        assert np.mean(shares) >= floor, rows


def test_every_fourth_pair_labelled_by_eye(sample, tmp_path, network):
    pairs = labelled_pairs()
    assert len(pairs) == len({(pair.image_id, pair.evaluation) for pair in pairs}) == 500
    near = [pair for pair in pairs if pair.cosine > 0.97 or pair.same == "copy"][::4]
    images, _ = archive_pictures(sample, {pair.image_id for pair in near})
    tests = evaluation_pictures(sample)
    references = {pair.evaluation: tests[pair.evaluation] for pair in near}
    matches = found_by_embedding(images, references, network, tmp_path).keys() | found_by_hash(images, references)
    same = {(pair.image_id, pair.evaluation): pair.same for pair in pairs}
    assert matches <= same.keys()  # others have no label
    assert {(pair.image_id, pair.evaluation) for pair in near if pair.same == "copy"} <= matches
    assert sum(same[pair] == "no" for pair in matches) <= MOST_OF_A_FOURTH


@pytest.mark.numerics
@pytest.mark.timeout(1800)  # embeds thousands of pictures
def test_every_edit_of_200_evaluation_images(sample, tmp_path, network):
    pictures = evaluation_pictures(sample)
    rows = recall({name: pictures[name] for name in drawn(pictures, 200)}, pictures, network, tmp_path)
    assert {row.kind for row in rows} == set(EDITS)
    for kind, floor in (FLOORS | {"watermark": 0.9}).items():
        assert np.mean([row.by_rule for row in rows if row.kind == kind]) >= floor, rows


@pytest.mark.numerics
@pytest.mark.timeout(1800)  # embeds thousands of pictures
def test_the_whole_archive_holds_no_match_that_nobody_has_looked_at(sample, tmp_path, network):
    images, _ = archive_pictures(sample)
    tests = evaluation_pictures(sample)
    matches = found_by_embedding(images, tests, network, tmp_path).keys() | found_by_hash(images, tests)
    same = {(pair.image_id, pair.evaluation): pair.same for pair in labelled_pairs()}
    assert matches <= same.keys()
    assert {pair for pair, label in same.items() if label == "copy"} <= matches
    assert sum(same[pair] == "no" for pair in matches) <= MOST_FALSE_POSITIVES


MAX_PIXELS = 10**8


@pytest.fixture(scope="module")
def pictures(sample):
    """200 real emoji: many of one outline."""
    with tarfile.open(sample / "evaluation" / "concepts.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:200]
        return [file.read() for member in members if (file := tar.extractfile(member))]


def fingerprints(images):
    return Fingerprints.of((str(index), image_signals(data, MAX_PIXELS)) for index, data in enumerate(images))


def matches(left, right):
    return matches_by_hash(fingerprints(left), fingerprints(right))


def changed(data, scale, kind, quality):
    image = decode(data, max_pixels=MAX_PIXELS)
    image = image.resize(
        (max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.LANCZOS
    )
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


@pytest.mark.usefixtures("any_blocks")
def test_each_image_is_found_under_its_own_number():
    random = np.random.default_rng(0)
    thumbnails = random.normal(size=(20, 3 * THUMBNAIL_PX**2)).astype(np.float32)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    phashes, colours = random.integers(0, 2**64, 20, np.uint64), np.zeros((20, 3), np.float32)

    def of(chosen):
        return Fingerprints([str(row) for row in chosen], phashes[chosen], thumbnails[chosen], colours[chosen])

    assert matches_by_hash(of(np.arange(20)), of([19, 3, 7])) == [(3, 1), (7, 2), (19, 0)]


@pytest.mark.parametrize(
    ("scale", "kind", "quality"), [(1, "JPEG", 60), (0.5, "JPEG", 85), (0.31, "PNG", 0), (1, "WEBP", 70), (2, "PNG", 0)]
)
def test_copies_are_found(pictures, scale, kind, quality):
    originals = pictures[:25]
    pairs = matches([changed(data, scale, kind, quality) for data in originals], originals)
    assert {(index, index) for index in range(len(originals))} <= set(pairs)


def test_different_pictures_are_kept_apart(pictures):
    different = [pair for pair in matches(pictures, pictures) if pair[0] != pair[1]]
    identical = [(a, b) for a, b in different if pictures[a] == pictures[b]]
    assert len(different) - len(identical) <= 2  # of 39,800


def test_plain_colours_match_only_their_own():
    reds, blue = [picture(300, 300, "red"), picture(80, 80, "red", "JPEG")], picture(300, 300, "blue")
    assert matches(reds, [reds[0], blue]) == [(0, 0), (1, 0)]


def test_nothing_to_compare_with():
    assert matches([picture(9, 9)], []) == []
    assert matches([], [picture(9, 9)]) == []


def test_perceptual_hash_against_a_double_loop():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    values = []
    for u in range(8):
        for v in range(8):
            total = 0.0
            for y in range(32):
                for x in range(32):
                    wave = math.cos(math.pi * u * (2 * y + 1) / 64) * math.cos(math.pi * v * (2 * x + 1) / 64)
                    total += float(pixels[y, x]) * wave
            values.append(total)
    median = float(np.median(values))
    expected = int("".join("1" if value > median else "0" for value in values), 2)
    assert perceptual_hash(Image.fromarray(pixels)) == expected


def test_bad_bytes_are_measured_not_raised():
    assert image_signals(b"no picture", MAX_PIXELS).width_px is None
    huge = image_signals(png_header(20_000, 10_000), MAX_PIXELS)
    assert (huge.width_px, huge.height_px, huge.phash) == (20_000, 10_000, None)
    broken = image_signals(picture(300, 300, kind="JPEG")[:700], MAX_PIXELS)
    assert (broken.width_px, broken.phash) == (300, None)


def test_in_threads_keeps_order_and_passes_errors_on():
    assert list(in_threads(lambda x: x * x, range(500), 3)) == [x * x for x in range(500)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // x, [1, 0], 2))


def test_an_image_is_looked_at_once_and_found_under_each_of_its_names():
    looked = []

    def look(images):
        for name, data in images:
            looked.append((name, data))
            if data != b"undecodable":
                yield name, len(data)

    def of(name, **pictures):
        items = [EvaluationImage(key, key, ("x",), None, "query") for key in pictures]
        return EvaluationSet(name, "retrieval", "", items, (), (), held(list(pictures.values())))

    sets = [of("a", one=b"one", two=b"undecodable"), of("b", three=b"three", seven=b"one")]
    assert list(by_content(look, distinct_pictures(sets))) == [("a/one", 3), ("b/seven", 3), ("b/three", 5)]
    assert [name for name, _ in looked] == ["a/one", "a/two", "b/three"]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    root = tmp_path_factory.mktemp("similarity")
    shutil.copytree(tiny_model.write(root), root / "packaged" / "artifacts" / "finetuned")
    return root / "packaged"


@pytest.mark.parametrize("library", [None, "clip"])
def test_a_given_model_measures_pairs(packaged, library):
    given = packaged if library is None else library_models.write(packaged.parent, library)
    embedder = Embedder.load(packaged_towers(ModelFile(path=str(given), sha256=sha256_folder(given))))
    pairs = [("0", picture(90, 60), "a red heart"), ("1", b"no picture", "the yellow sun"), ("2", picture(9, 9), "sun")]
    cosines = list(similarities(pairs, embedder.embed_images, embedder.embed_texts))
    expected = [
        float(np.dot(embedder.embed_images([data])[0], embedder.embed_texts([text])[0])) for _, data, text in pairs[::2]
    ]
    assert cosines[1] == ("1", None)
    assert [cosines[0][1], cosines[2][1]] == pytest.approx(expected, abs=2e-4)
    assert cosines[0][1] != cosines[2][1]


@pytest.mark.usefixtures("small_blocks")
def test_each_image_meets_its_own_text_however_many_there_are():
    vectors = np.eye(7, dtype=np.float32)

    def embed_images(images):
        if b"broken" in images:
            raise DataError("an image does not decode")
        return vectors[[int(data) for data in images]]

    def embed_texts(texts):
        return vectors[[int(text) for text in texts]] * np.float32(0.5)

    pairs = [
        (str(number), str(number % 7).encode() if number % 5 else b"broken", str(number % 3)) for number in range(40)
    ]
    expected = [
        (str(number), None if number % 5 == 0 else 0.5 if number % 7 == number % 3 else 0.0) for number in range(40)
    ]
    assert list(similarities(iter(pairs), embed_images, embed_texts)) == expected
    assert list(similarities([], embed_images, embed_texts)) == []


def test_another_folder_than_the_one_named_is_refused(packaged, tmp_path):
    with pytest.raises(DataError, match="no packaged model here"):
        packaged_towers(ModelFile(path=str(tmp_path), sha256="0" * 64))
    with pytest.raises(CorruptError, match=f"not {'0' * 64}"):
        packaged_towers(ModelFile(path=str(packaged), sha256="0" * 64))
