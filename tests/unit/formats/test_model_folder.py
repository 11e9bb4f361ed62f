"""The model folder: config.json is strict, and weights are read back as they were."""

import json

import pytest
import torch

from align.errors import CorruptError, DataError, FormatError
from align.formats.model_folder import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FOLDER,
    WEIGHTS,
    ModelFolderConfig,
    library_model,
    model_digest,
    read_config,
    read_weights,
    weights_digest,
    write_model_folder,
)
from tests.support import tiny_model
from tests.support.training_data import MODEL

CONFIGURATION = ModelFolderConfig(model=MODEL, vocab_size=100, stage="pretrain", trained_on=())


def test_what_is_written_is_read(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(1.5)}
    write_model_folder(CONFIGURATION, weights, tmp_path)
    digest = weights_digest(tmp_path)
    assert read_config(tmp_path) == CONFIGURATION.model_copy(update={"weights_sha256": digest})
    again = read_weights(tmp_path)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    write_model_folder(CONFIGURATION, weights, tmp_path)
    assert weights_digest(tmp_path) == digest and library_model(tmp_path) is None


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"model_type": "align"}, FormatError, "in Hugging Face's format; convert it with `align import_model --from"),
    ({"schema_version": 1}, FormatError, "schema_version 1, this code reads 2"),
    ({"vocab_size": "100"}, DataError, "not a model configuration of this version: .*vocab_size"),
    ({"more": 1}, DataError, "not a model configuration of this version: .*more"),
    ({"model": {}}, DataError, "not a model configuration of this version"),
])  # fmt: skip
def test_other_configurations_are_refused(tmp_path, change, error, message):
    write_model_folder(CONFIGURATION, {}, tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message):
        read_config(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"config\.json is missing"):
        read_config(tmp_path)
    for text in ("[]", "7"):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(DataError, match=r"config\.json: not a JSON object"):
            read_config(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(FormatError, match=r"not a model of this project: its config\.json has no schema_version"):
        read_config(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_config(tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors: no such file"):
        weights_digest(tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors: no such file"):
        read_weights(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"not weights")
    (tmp_path / CONFIG).unlink()  # which could note another digest
    with pytest.raises(DataError, match=r"model\.safetensors: does not load"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, f"{TOKENIZER_FOLDER}/{TOKENIZER}"])
def test_a_damaged_model_has_no_digest_and_its_file_is_named(tmp_path, name):
    directory = tiny_model.write(tmp_path)
    assert model_digest(directory) == model_digest(directory)
    data = bytearray((directory / name).read_bytes())
    data[-5] ^= 1
    (directory / name).write_bytes(data)
    with pytest.raises(CorruptError) as error:  # and not an index that names another model
        model_digest(directory)
    assert str(error.value).startswith(f"{directory / name}: damaged")


@pytest.mark.parametrize("name", [CONFIG, f"{TOKENIZER_FOLDER}/{TOKENIZER_CONFIG}"])
def test_a_file_that_notes_a_digest_and_cannot_be_read_is_named(tmp_path, name):
    directory = tiny_model.write(tmp_path)
    (directory / name).write_text("{")
    with pytest.raises(DataError) as error:  # and neither an index nor a file whose digest nobody knows
        model_digest(directory)
    assert str(error.value).startswith(f"{directory / name}: ")
