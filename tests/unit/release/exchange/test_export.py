"""`align export` and `align import_model`: exported and imported models give the same embeddings."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import align.release.exchange.export
from align.cli import main
from align.config.model import ModelConfig
from align.durable.files import marked, sha256_file
from align.errors import ConfigError, DataError, FormatError
from align.formats.evaluation_sets.align_tar import load_sets
from align.formats.model_folder import Imported, read_config, tokenizer_of
from align.formats.shards import read_manifest
from align.model import image_tower
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.model.embedder import Embedder
from align.model.image_tower import ImageTower, estimate_statistics
from align.model.tokenizer import TextTokenizer
from align.release.exchange.export import ParitySamples, find_samples
from align.release.exchange.import_model import import_model
from align.release.packaging.package import package
from align.training.stage import train_stage
from tests.support import ROOT, tiny_model, training_data
from tests.support.params import PARAMS_FILE, load_params
from tests.support.pictures import blurred_png

#: Of the image tower: tracing takes as long as the tower has operations.
NUM_STAGES = pytest.mark.parametrize("trained", [3, pytest.param(7, marks=pytest.mark.tools)], indirect=True)

IMAGES = [blurred_png(seed, (40 + seed, 50)) for seed in range(3)]


@pytest.fixture
def trained(tmp_path, request, monkeypatch):
    """A model folder at native width whose statistics are those of pictures; all seven stages, or the first ones."""
    monkeypatch.setattr(image_tower, "_STAGES", image_tower._STAGES[: getattr(request, "param", 7)])
    model_dir = tiny_model.write(tmp_path / "trained")
    config = tiny_model.TINY.model_copy(update={"embed_width": ImageTower(tiny_model.TINY).width})
    torch.manual_seed(0)
    model = DualEncoder(config, TextTokenizer.load(tokenizer_of(model_dir), config.max_tokens).vocab_size)
    estimate_statistics(model.vision_model, [torch.rand(8, 3, 32, 32) * 2 - 1])
    save_model(model, model_dir, stage="finetune")
    return model_dir


def export(kind, trained, out, *more):
    """The command itself, on given images and texts."""
    images = out.parent / "images"
    images.mkdir(exist_ok=True)
    for index, data in enumerate(IMAGES):
        (images / f"{index}.png").write_bytes(data)
    texts = out.parent / "texts.txt"
    texts.write_text("\n".join(tiny_model.TEXTS) + "\n", encoding="utf-8")
    return main([
        "export", "--params", str(PARAMS_FILE), "--format", kind, "--out", str(out), "--model",
        str(trained), "--images", str(images), "--texts", str(texts), *more,
    ])  # fmt: skip


def _reshape(folder, changes):
    """Puts an untrained model of a changed shape into a model folder; returns the shape."""
    config = ModelConfig.model_validate(read_config(folder).model.model_dump(mode="json") | changes)
    torch.manual_seed(1)
    model = DualEncoder(config, read_config(folder).vocab_size)
    torch.nn.init.normal_(model.text_projection.bias)
    estimate_statistics(model.vision_model, [torch.rand(8, 3, 32, 32) * 2 - 1])
    save_model(model, folder, stage="finetune")
    return config


def _as_the_readme_says(out, monkeypatch):
    """The numbers that the lines of use print, in the folder, of a picture and two texts or one."""
    readme = (out / "README.md").read_text()
    assert readme.startswith("---\nlicense: ")
    (out / "picture.jpg").write_bytes(IMAGES[0])
    [code] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    printed = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(out)
        exec(code, {})
    return [float(number) for number in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", printed.getvalue())]


def _cosines(trained):
    model = Embedder.load(trained)
    rows = model.embed_images(IMAGES[:1]) @ model.embed_texts(["a red fox", "an owl"]).T
    return [float(value) for value in rows[0]]


@pytest.mark.parametrize(("given", "field"), [([], "other"), (["--license", "CC-BY-4.0"], "cc-by-4.0")])
def test_a_folder_says_how_it_is_used_and_its_licence(trained, tmp_path, monkeypatch, given, field):
    assert export("align", trained, tmp_path / "out", *given) == 0
    assert f"license: {field}\n" in (tmp_path / "out/README.md").read_text()
    assert _as_the_readme_says(tmp_path / "out", monkeypatch) == pytest.approx(_cosines(trained), abs=1e-4)
    with pytest.raises(SystemExit):
        export("align", trained, tmp_path / "other", "--license", "mine: \n- x")


@pytest.mark.parametrize("changes", [{}, {"embed_width": 48}, {"logit_bias_init": -10.0, "image_px": 35}])
def test_open_clip_gets_any_shape(trained, tmp_path, capsys, changes):
    """tests/integration/test_adapters.py has open_clip itself; this has what it is given."""
    config = _reshape(trained, changes)
    assert export("open_clip", trained, tmp_path / "out") == 0
    found = re.search(r"differ by at most (\S+), of 4 texts by (\S+)", capsys.readouterr().err)
    assert found and max(map(float, found.groups())) < 1e-5
    written = json.loads((tmp_path / "out/open_clip_config.json").read_text())["model_cfg"]
    assert written["vision_cfg"]["timm_model_name"] == "tf_efficientnet_b0"
    assert written["vision_cfg"]["image_size"] == 32 and written["embed_dim"] == config.embed_width
    assert ("init_logit_bias" in written) == (config.logit_bias_init is not None)


ROBERTA = {
    "model_type": "roberta", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 17,
}  # fmt: skip


@pytest.mark.tools
@pytest.mark.parametrize(("changes", "said"), [
    ({"image_tower": "timm:test_convnext", "image_px": 35}, None),
    ({"image_tower": "timm:test_vit"}, None),
    ({"text_tower": {"config": ROBERTA}}, "text tower roberta is not ALIGN's BERT: this format cannot hold it"),
    ({"image_tower": "timm:vit_tiny_patch16_224"}, "of 32 px there: Input height .32. doesn't match model .224."),
    ({"image_tower": "timm:mobilenetv3_small_050"}, "it expects 288 features, not 1024"),
])  # fmt: skip
def test_open_clip_gets_the_towers_that_it_builds(trained, tmp_path, capsys, changes, said):
    config = _reshape(trained, changes)
    assert export("open_clip", trained, tmp_path / "out") == (said is not None)
    printed = capsys.readouterr().err
    if said is not None:
        assert re.search(f"^align: error: .*{said}", printed) and printed.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return
    found = re.search(r"differ by at most (\S+), of 4 texts by (\S+)", printed)
    assert found and max(map(float, found.groups())) < 1e-5
    written = json.loads((tmp_path / "out/open_clip_config.json").read_text())["model_cfg"]
    assert f"timm:{written['vision_cfg']['timm_model_name']}" == config.image_tower
    assert written["vision_cfg"]["image_size"] == config.image_px


def test_a_tower_beyond_timms_is_refused(trained, tmp_path, capsys):
    tower = {"width_coefficient": 0.25, "depth_coefficient": 6.0}
    config = ModelConfig.model_validate(read_config(trained).model.model_dump(mode="json") | {"image_tower": tower})
    save_model(DualEncoder(config, read_config(trained).vocab_size), trained, stage="finetune")
    assert export("open_clip", trained, tmp_path / "out") == 1
    assert "timm has no EfficientNet as wide and as deep" in capsys.readouterr().err


@pytest.mark.tools
@NUM_STAGES
def test_onnx_runs_in_onnxruntime_at_any_batch_and_length(trained, tmp_path, capsys, monkeypatch):
    out = tmp_path / "onnx"
    assert export("onnx", trained, out) == 0
    assert "embeddings of 3 images differ by at most" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == [
        ".align.json", "README.md", "image_encoder.onnx", "interface.json",
        "text_encoder.onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    embedder = Embedder.load(trained)
    image, text = (onnxruntime.InferenceSession(out / f"{name}_encoder.onnx") for name in ("image", "text"))
    tokenizer = TextTokenizer.load(out, 16)
    for count in (1, 4):
        texts = tiny_model.TEXTS[:count]
        ids, mask = tokenizer(texts)
        embeds = text.run(["text_embeds"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        np.testing.assert_allclose(embeds, embedder.embed_texts(texts), atol=1e-5)
        crops = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        pixels = crops.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        embeds = image.run(["image_embeds"], {"pixels": pixels})[0]
        np.testing.assert_allclose(embeds, embedder.embed_pixels(crops), atol=1e-5)
    weights = (trained / "model.safetensors").stat().st_size
    graphs = [onnx.load(out / f"{name}_encoder.onnx").graph for name in ("image", "text")]
    sizes = [sum(len(one.raw_data) for one in graph.initializer) for graph in graphs]
    assert sum(sizes) < 1.1 * weights and min(sizes) > 0.02 * weights  # each holds its own tower's weights
    interface = json.loads((out / "interface.json").read_text())
    assert (interface["resize_px"], interface["image_px"], interface["max_tokens"]) == (36, 32, 16)
    assert _as_the_readme_says(out, monkeypatch) == pytest.approx(_cosines(trained)[:1], abs=0.01)


def test_hugging_face_and_back_is_the_same_model(trained, tmp_path, monkeypatch):
    folder, out = tmp_path / "hf", tmp_path / "imported"
    assert export("hf", trained, folder) == 0
    logits = torch.tensor(_cosines(trained)) / load_model(trained).temperature.detach()
    assert _as_the_readme_says(folder, monkeypatch) == pytest.approx(logits.softmax(0).tolist(), abs=1e-3)
    assert main(["import_model", "--params", str(PARAMS_FILE), "--from", str(folder), "--out", str(out)]) == 0
    assert marked(folder) == "export" and export("hf", trained, folder) == 0  # ours, so it is replaced
    before, after = Embedder.load(trained), Embedder.load(out)
    np.testing.assert_allclose(after.embed_images(IMAGES), before.embed_images(IMAGES), atol=1e-5)
    np.testing.assert_allclose(after.embed_texts(tiny_model.TEXTS), before.embed_texts(tiny_model.TEXTS), atol=1e-5)
    assert load_model(out).config.batch_norm_group == 16  # of params.yaml
    with pytest.raises(FormatError, match="`align import_model --from "):
        load_model(folder)


def test_an_imported_model_is_fine_tuned_and_packaged(trained, tmp_path):
    folder, out = tmp_path / "hf", tmp_path / "imported"
    assert export("hf", trained, folder) == 0
    params = load_params(PARAMS_FILE, ["model.batch_norm_group=4"])
    config = import_model(params.section(ModelConfig), folder, out).config
    shards, _ = training_data.write(tmp_path / "data")
    recipe = training_data.finetune_config(num_steps=2, learning_rate=1e-9)
    plan = training_data.plan((shards, tokenizer_of(out)), tmp_path / "ck", recipe, model=config, initial=out)
    train_stage(plan, out=tmp_path / "finetuned", reports=tmp_path / "reports")
    tuned, before = load_model(tmp_path / "finetuned").state_dict(), load_model(out).state_dict()
    for name in ("text_projection.weight", "vision_model.embeddings.convolution.weight", "log_temperature"):
        torch.testing.assert_close(tuned[name], before[name], atol=1e-5, rtol=1e-5)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text("{}")
    made, reports = tmp_path / "packaged", tmp_path / "reports_of_package"
    report = package(model=out, evaluation=tmp_path / "evaluation", out=made, reports=reports)
    assert report.metrics["package/embed_width"] == config.embed_width == 80
    source = Imported(folder="hf", weights=sha256_file(folder / "model.safetensors"))
    assert (report.imported, report.trained_on) == (source, ())
    assert read_config(out).stage == "import_model"
    after = read_config(tmp_path / "finetuned")
    assert (after.imported, after.trained_on) == (source, (read_manifest(shards).digest,))


def test_a_folder_of_somebody_stays(trained, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "wedding.jpg").write_bytes(b"the only copy")
    assert export("align", trained, folder) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "photos: has content, and no .align.json" in lines[0]
    params = load_params(PARAMS_FILE, ["model.batch_norm_group=4"]).section(ModelConfig)
    assert export("hf", trained, tmp_path / "hf") == 0
    with pytest.raises(DataError, match=r"photos: has content"):
        import_model(params, tmp_path / "hf", folder)
    for out in (tmp_path / "hf", tmp_path / "hf/ours", tmp_path):
        with pytest.raises(DataError, match="the input"):
            import_model(params, tmp_path / "hf", out)
    assert [path.name for path in folder.iterdir()] == ["wedding.jpg"]


@pytest.mark.parametrize("trained", [1], indirect=True)
@pytest.mark.parametrize("factor", [1 + 1e-2, float("nan")])
def test_a_failed_check_writes_nothing(trained, tmp_path, capsys, monkeypatch, factor):
    compare = align.release.exchange.export.compare

    def wrong(model, encode, *inputs):
        image, text = encode
        return compare(model, (image, lambda *tokens: text(*tokens) * factor), *inputs)

    monkeypatch.setattr(align.release.exchange.export, "compare", wrong)
    out = tmp_path / "wrong"
    assert export("align", trained, out) == 1
    assert "not written: as align the embeddings of images differ by" in capsys.readouterr().err
    assert not out.exists() and not list(tmp_path.glob(".wrong*"))


def test_a_width_without_a_place_upstream_is_one_clear_line(tmp_path, capsys):
    assert export("hf", tiny_model.write(tmp_path / "trained"), tmp_path / "hf") == 1
    said = capsys.readouterr().err
    assert "embed_width 16 is not the image tower's own width 80" in said and "has no image projection" in said
    assert not (tmp_path / "hf").exists()


def test_onnx_without_its_packages_says_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'align-mlops\[onnx\]'"):
        align.release.exchange.export.export(
            "onnx",
            model_dir=trained,
            samples=ParitySamples({str(index): data for index, data in enumerate(IMAGES)}, tiny_model.TEXTS),
            out=tmp_path / "onnx",
        )


def test_samples_come_from_the_evaluation_sets_or_from_what_is_given(tmp_path):
    samples = find_samples(load_sets(ROOT / "data/sample/evaluation"), None, None)
    assert (len(samples.images), len(samples.texts)) == (16, 16)
    photos, captions = tmp_path / "photos", tmp_path / "photos/captions.csv"
    photos.mkdir()
    captions.write_text("file,caption\n1.PNG,a fox\n")
    with pytest.raises(DataError, match=r"--images .*photos: no picture in it"):
        find_samples([], photos, captions)
    (photos / "1.PNG").write_bytes(IMAGES[0])
    assert find_samples([], photos, captions).images == {str(photos / "1.PNG"): IMAGES[0]}  # not the table
    for wrong in (tmp_path / "gone", photos / "1.PNG"):
        with pytest.raises(DataError, match=f"--images {wrong}: no such folder"):
            find_samples([], wrong, captions)


def test_a_damaged_picture_is_named(trained, tmp_path):
    samples = ParitySamples({"photos/1.png": b"damaged"}, tiny_model.TEXTS)
    with pytest.raises(DataError, match=r"^photos/1\.png: "):
        align.release.exchange.export.export("align", model_dir=trained, samples=samples, out=tmp_path / "out")


def test_what_cannot_be_is_one_line(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("")
    shutil.copy(PARAMS_FILE, tmp_path / "here/params.yaml")
    (tmp_path / "here/dvc.yaml").write_text("stages: {package: {cmd: x, outs: [made]}}")
    monkeypatch.chdir(tmp_path / "here")
    importing = ["import_model", "--params", str(PARAMS_FILE), "--from"]
    cases = (
        (lambda: export("align", trained, Path()), ".: the working directory, or a folder around it, is not replaced"),
        (lambda: export("align", trained, trained), "would replace, or lie in, the input"),
        (lambda: export("align", trained, Path("made")), "--out made: stage package of dvc.yaml"),
        (lambda: main([*importing, "../trained/model", "--out", "made"]), "--out made: stage package of dvc.yaml"),
        (lambda: main([*importing, "none", "--out", "new"]), "--from none: no such folder"),
        (lambda: main([*importing, "../file", "--out", "new"]), "--from ../file: no such folder"),
        (lambda: main([*importing, "../here", "--out", "../new"]), "../here: no ALIGN model in Hugging Face's format"),
        (lambda: main([*importing, "../trained/model", "--out", "../file"]), "../file: is a file, not a folder"),
    )
    for command, line in cases:
        assert command() == 1
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and line in said[0]
