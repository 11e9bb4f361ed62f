"""Every page that the project makes opens in a real browser that has no network: built by the stages, on real data."""

import base64
import io
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from align.cli import main
from align.config.release import PromoteConfig
from align.display.html import page as page_of
from align.display.html import picture
from align.formats.query_ranks import read_ranks
from align.formats.shards import iter_samples
from align.release.promotion.decision import Compared, Gate, PromotionDecision
from align.release.promotion.page import write_page
from align.release.promotion.slices import compared_slices
from align.statistics.paired import difference, of_metrics
from flows.checkout.run_branch import Recorded
from flows.dag import Selection, read_dag
from flows.pages.index import index_file, write_index
from flows.run.context import RunContext
from tests.support import ROOT, wait_until
from tests.support.browser import open_page
from tests.support.params import PARAMS_FILE, at, load_params, sets
from tests.support.web_server import WebServer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]  # the stages run within the first test

#: What a person reads in a page without tags, whether each picture decodes, and what it asked for besides itself.
SEEN = """(async () => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), words = [];
  while (walk.nextNode()) if (walk.currentNode.parentNode.tagName !== "SCRIPT") words.push(walk.currentNode.data);
  const decoded = [...document.images].map((image) => image.decode().then(() => true, () => false));
  const asked = performance.getEntriesByType("resource").map((entry) => entry.name);
  return [words.join(" "), await Promise.all(decoded), asked];
})()"""

#: Attributes and CSS that make a browser fetch something; plain links and URLs in the text are none.
FETCHES = re.compile(
    r"""(?:\b(?:src|srcset|poster|data)|<link[^>]*\bhref)\s*=\s*["']?\s*(?:https?:)?//"""
    r"""|url\(\s*["']?\s*(?:https?:)?//|@import""",
    re.IGNORECASE,
)


PAGES = (
    "ingest", "filter", "quality", "shard", "quality_shards", "fit_tokenizer", "pretrain", "finetune", "evaluation",
    "index", "search", "compared", "promotion", "run",
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A page after it was opened; `picture` is the window, RGB."""

    text: str
    images: list[bool]
    requests: list[str]
    picture: np.ndarray


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """Where no host name resolves."""
    folder = tmp_path_factory.mktemp("browser")
    with open_page(folder, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--hide-scrollbars") as page:
        yield page


def browse(tab, page):
    """Opens a page, with its policy."""
    tab.ask("Page.setBypassCSP", enabled=False)
    tab.size(1100, 1400)
    tab.look()
    tab.open(page.as_uri())
    text, images, requests = tab.run(SEEN)
    tab.picture(shot := page.with_suffix(".png"))
    with Image.open(shot) as image:
        return Opened(" ".join(text.split()), images, requests, np.asarray(image.convert("RGB")))


def share_inked(picture):
    """Share of the window's pixels that are not of its commonest colour."""
    colours = picture.reshape(-1, 3).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return 1 - np.unique(colours, return_counts=True)[1].max() / len(colours)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, tab):
    """All stages that make pages, run as a user runs them, on some pages of the sample and a model of few steps."""
    root = tmp_path_factory.mktemp("pages")
    values = {
        "ingest.max_pages": 16, "evaluate.num_resamples": 100, "validate.keep_rate": "[0.0, 1.0]",
        "validate.dropped_share.text_rare_ngram": "[0.0, 1.0]", "validate.max_evaluation_hash_share": 1.0,
        "paths.archive": ROOT / "data/sample/archive.warc.gz", "paths.evaluation": ROOT / "data/sample/evaluation",
        "index.queries": root / "queries.json", "finetune.from": root / "pretrained",
        "model.image_tower.width_coefficient": 0.25, "model.image_tower.depth_coefficient": 0.25,
        "model.text_tower.width": 16, "model.text_tower.heads": 2, "model.text_tower.layers": 1,
        "model.embed_width": 16,
        "pretrain.batch_size": 16, "pretrain.num_steps": 8, "pretrain.warmup_steps": 2, "pretrain.num_processes": 1,
        "pretrain.log_every_steps": 1, "pretrain.validate_every_steps": 2, "finetune.num_steps": 2,
    }  # fmt: skip
    folders = (
        "raw", "filtered", "shards", "tokenizer", "pretrained", "finetuned", "checkpoints", "index", "reports",
        "runtime", "policy",
    )  # fmt: skip
    settings = sets(*at(root, *folders), *(f"{key}={value}" for key, value in values.items()))

    def align(*words):
        assert main([words[0], "--params", str(PARAMS_FILE), *settings, *words[1:]]) == 0

    for stage in (
        "ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer", "pretrain", "finetune", "evaluate",
    ):  # fmt: skip
        align(stage)
    queries = json.loads((ROOT / "data/sample/queries.json").read_text(encoding="utf-8"))
    text = next(iter_samples(root / "shards", "train")).texts[0]  # of an image that is there, however small the run
    word = max(re.findall(r"\w+", text), key=len)
    queries["composed"] = [{"image_text": word, "minus": "a red circle", "expected": ["star"]}]
    (root / "queries.json").write_text(json.dumps(queries), encoding="utf-8")
    align("index")
    align("search", "a red heart", "-k", "6", "--html", str(root / "reports/search/report.html"))
    compared = root / "reports/compared"
    align("evaluate", "--compare", str(root / "pretrained"), str(root / "finetuned"), "--reports", str(compared))
    mine, theirs = (read_ranks(compared / name / "ranks.parquet") for name in ("b", "a"))
    decide(mine, theirs, root / "reports/promotion")
    run = RunContext(root=root, checkout=root, name="demo", chosen=Selection(asked=read_dag(ROOT)), mlflow_page="#")
    write_index(run, Recorded("demo", "0" * 40, is_new=True), "align version 3")
    (root / "reports/run").mkdir()
    index_file(run).rename(root / "reports/run/report.html")
    return root / "reports"


def decide(mine, theirs, folder):
    """The page of a promotion, which needs MLflow, of one that these two could have."""
    metric, config = "concepts/mean_recall", load_params().section(PromoteConfig)
    one = difference(of_metrics([metric], mine, theirs), confidence=0.95)
    gates = (Gate("lineage", "all", "all", True), Gate("health alarms", "-", "none", None), Gate("b", "2", "1", False))
    made = PromotionDecision(
        outcome="refused", reason="it is not better", model="align", candidate=2, what="run 1", champion=1,
        scores={metric: (0.5, 0.4)}, gates=gates, confidence=0.95, margin=0.005, measured=("version 2: here",),
        compared=Compared(one, {metric: one}, tuple(compared_slices(config, mine, theirs))), sets_digest="d" * 64,
        num_decided=12, at="2026-11-27T12:00:00Z",
    )  # fmt: skip
    folder.mkdir()
    write_page(made, folder).rename(folder / "report.html")


@pytest.mark.parametrize(
    ("name", "num_images", "texts"),
    [
        ("filter", 10, "What the filter kept and dropped | pairs kept | Every rule | "
                       "Hosts of most images | Personal data in texts | Dropped: image_too_small"),
        ("quality", 0, "Data quality | All expectations | keep rate | passed | concepts | No reference"),
        ("shard", 25, "Shards | Splits | images of a cluster | Samples of train | Samples of val"),
        ("fit_tokenizer", 0, "The vocabulary | texts are cut at 64 | Least frequent of those that occur | [CLS]"),
        ("pretrain", 40, "Training: pretrain | validation recall@10 | by chance | batch-norm gap | "
                         "found while it learned"),
        ("finetune", 10, "Training: finetune | temperature | nearest first | all pages of the run"),
        ("quality_shards", 0, "Quality of the shards | What the manifest says | shards-changed | passed"),
        ("evaluation", 10, "Evaluation | recall@K is the published protocol | by chance | concepts | vendor | "
                           "Classification of the fine-tuned model: classes"),
        ("run", 0, "Run demo | commit 000000000000 | align version 3 | filter | keep_rate | above chance"),
        ("index", 10, "Search | labelled queries | red heart | the same - “a red circle”"),
        ("search", 6, "Search | a red heart | Nearest images"),
    ],
)  # fmt: skip
def test_the_page_opens_whole_with_no_network(pages, tab, name, num_images, texts):
    page = pages / name / "report.html"
    opened = browse(tab, page)
    for text in texts.split(" | "):
        assert text in opened.text
    assert not FETCHES.findall(page.read_text("utf-8"))
    assert opened.requests == []
    assert len(opened.images) >= num_images
    assert all(opened.images), f"{opened.images.count(False)} of {len(opened.images)} pictures did not decode"
    assert share_inked(opened.picture) > 0.01


@pytest.mark.parametrize("looks", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_axe_finds_nothing(pages, tab, name, width, looks):
    tab.ask("Page.setBypassCSP", enabled=True)  # axe is a script
    tab.size(width, 900)
    tab.look(looks)
    tab.open((pages / name / "report.html").as_uri())
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert (tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (looks == "light")
    for opened in (False, True):
        tab.run(f"document.querySelectorAll('details').forEach((one) => {{ one.open = {json.dumps(opened)} }})")
        assert tab.violations() == []


def test_no_page_is_forgotten(pages):
    made = {path.parent.relative_to(pages).as_posix() for path in pages.rglob("*.html")}
    assert made == {*PAGES, "compared/a", "compared/b"}  # these two are of the kind `evaluation`


def test_what_the_browser_reports_is_what_happened(tab, tmp_path):
    """The checks above can fail: a truncated picture, a resource elsewhere and an empty page are seen."""
    whole = tmp_path / "picture.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole)
    encode = base64.b64encode
    good, cut = (encode(data).decode() for data in (whole.read_bytes(), whole.read_bytes()[:100]))
    sources = (f"data:image/jpeg;base64,{good}", f"data:image/jpeg;base64,{cut}", "https://example.org/a.png")
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><body>" + "".join(f'<img src="{source}">' for source in sources) + "</body>")
    opened = browse(tab, page)
    assert opened.images == [True, False, False]
    assert opened.requests == ["https://example.org/a.png"]
    assert FETCHES.findall(page.read_text())
    page.write_text("<!doctype html><body></body>")
    assert share_inked(browse(tab, page).picture) == 0


def test_a_strangers_html_in_a_page_neither_runs_nor_loads_anything(tab, tmp_path):
    planted = """<script>document.title = "it ran"; document.body.append("it ran")</script>
        <script src="THERE/script"></script><img src="THERE/image" onerror="document.body.append('it ran')">
        <link rel="stylesheet" href="THERE/sheet"><style>h1 { background: url(THERE/style) }</style>
        <p style="background: url(THERE/attribute)">a</p><iframe src="THERE/frame"></iframe>
        <object data="THERE/object"></object><video src="THERE/video" autoplay></video>
        <svg width="10"><image href="THERE/svg" width="10" height="10"/></svg><base href="THERE/">"""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    page = tmp_path / "page.html"
    with WebServer() as server:
        pictures = [picture(buffer.getvalue(), alt="ours"), planted.replace("THERE", server.url(""))]
        page.write_text(page_of("A page", "lead", pictures))
        opened = browse(tab, page)
        assert server.requests == [] and "it ran" not in opened.text
        assert opened.images[0]  # the page's own picture is there
        page.write_text(re.sub("<meta http-equiv[^>]*>", "", page.read_text()))
        assert "it ran" in browse(tab, page).text  # without the policy, all of it happens
        names = ("script", "image", "sheet", "style", "attribute", "frame", "object", "video", "svg")
        wait_until(lambda: all(server.count(f"/{name}") for name in names), 30, says=lambda: server.requests)
