"""A model folder: `config.json`, `model.safetensors` and `tokenizer/`: all that an embedding needs.

`align.model.dual_encoder` builds the model from what is read here. A folder of transformers has files of the same
names, but another config.json: `align.release.exchange.interchange` converts those of AlignModel, and
`align.model.library_embedder` measures them, others of transformers, and those of open_clip as they are.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, ValidationError

from align.config.model import ModelConfig
from align.durable.files import sha256_file, to_json, write_text
from align.errors import CorruptError, DataError, FormatError, first_line
from align.formats.json_file import StoredModel, read_object

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION: Final = 2

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: In a tokenizer's folder.
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
#: What is measured as it is: models of transformers by their model_type, and open_clip's by its configuration.
TRANSFORMERS, OPEN_CLIP = ("align", "clip", "siglip", "siglip2"), "open_clip"
#: Ends of the files that decide what such a model computes.
_DECIDING = (".json", ".safetensors", ".txt", ".model")
#: In a model folder: the folder of the tokenizer that the model was trained with.
TOKENIZER_FOLDER = "tokenizer"


class Imported(StoredModel):
    """The origin of a model whose training this project does not know.

    Attributes:
        folder: name of the folder that was imported, without those around it, or of the towers that were given, joined
            by commas; None in a packaged model, since its bytes name it: equal weights are the same model, no matter
            what their folder was called.
        weights: hex sha256 of its weights; of each given tower, joined by commas.
    """

    folder: str | None
    weights: str


class ModelFolderConfig(StoredModel):
    """config.json.

    Attributes:
        model: the section that the model was built from.
        vocab_size: rows of the word embedding.
        stage: the stage that wrote the folder.
        imported: where the weights come from with which training here began; None if it began from scratch.
        trained_on: digests of the shards that changed the weights here, in order.
        not_gated: those of `trained_on` that no quality gate has judged: tars that others made. Not written if empty.
        chosen: which weights of a run these are, or of which models a blend; None: those after the last step.
        weights_sha256: hex sha256 of model.safetensors; None until it is written.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    model: ModelConfig
    vocab_size: int
    stage: str
    imported: Imported | None = None
    trained_on: Annotated[tuple[str, ...], Field(strict=False)]
    not_gated: Annotated[tuple[str, ...], Field(strict=False)] = ()
    chosen: dict[str, str | int | float] | None = None
    weights_sha256: str | None = None

    @property
    def saw_no_shards(self) -> bool:
        """Whether all data that changed the weights here are tars that others made."""
        return bool(self.not_gated) and set(self.not_gated) == set(self.trained_on)

    def to_text(self) -> str:
        """The text of the file."""
        left_out = {name for name in ("not_gated", "chosen", "weights_sha256") if not getattr(self, name)}
        return to_json(self.model_dump(mode="json", exclude=left_out))


def write_model_folder(config: ModelFolderConfig, weights: dict[str, Tensor], directory: Path) -> None:
    """Writes config.json, with the sha256 of the weights, and a state dict on any device, into a folder that exists.

    Equal weights are equal bytes.
    """
    from safetensors.torch import save_file  # imports torch, which no other format needs

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    names = {tensor.data_ptr(): name for name, tensor in on_cpu.items()}  # a table may have two names, as T5's words
    on_cpu = {name: one if names[one.data_ptr()] == name else one.clone() for name, one in on_cpu.items()}
    save_file(on_cpu, directory / WEIGHTS)
    config = config.model_copy(update={"weights_sha256": sha256_file(directory / WEIGHTS)})
    write_text(directory / CONFIG, config.to_text())


def read_config(directory: Path) -> ModelFolderConfig:
    """Reads config.json.

    Raises:
        DataError: the folder has no config.json, or it is not that of a model.
        FormatError: another schema version, or a folder of transformers' AlignModel.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise DataError(f"{directory}: no model here (config.json is missing); run the stage that writes it")
    document = read_object(path)
    if document.get("model_type") == "align":
        raise FormatError(
            f"{directory}: a model in Hugging Face's format; convert it with "
            f"`align import_model --from {directory} --out FOLDER`"
        )
    if "schema_version" not in document:
        raise FormatError(
            f"{directory}: not a model of this project: its config.json has no schema_version; name a folder that "
            "pretrain, finetune or import_model wrote; align evaluate also takes CLIP, SigLIP and ALIGN of "
            "transformers, and open_clip's"
        )
    version = document["schema_version"]
    if version != SCHEMA_VERSION:
        raise FormatError(f"{path}: schema_version {version!r}, this code reads {SCHEMA_VERSION}")
    try:
        return ModelFolderConfig.model_validate(document)
    except ValidationError as error:
        raise DataError(f"{path}: not a model configuration of this version: {' '.join(str(error).split())}") from None


def origin(directory: Path) -> str:
    """What trained the model of a folder, as far as this project knows, for people. Raises as `read_config`."""
    data = () if library_model(directory) else read_config(directory).trained_on
    return f"trained here on data {', '.join(one[:12] for one in data)}" if data else "trained elsewhere"


def leave_out_import_name(directory: Path) -> None:
    """Removes from config.json the name of the folder that was imported. Raises DataError, FormatError as
    `read_config`.
    """
    config = read_config(directory)
    if config.imported is not None:
        imported = config.imported.model_copy(update={"folder": None})
        write_text(directory / CONFIG, config.model_copy(update={"imported": imported}).to_text())


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Reads model.safetensors into a state dict on the CPU. Raises DataError if the file is missing, or does not load;
    CorruptError if it is not the one that config.json names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_unchanged(directory / WEIGHTS, directory / CONFIG, "weights_sha256")
    try:
        return load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{directory / WEIGHTS}: does not load: {first_line(error)}") from None


def require_unchanged(path: Path, noted_in: Path, key: str) -> str:
    """Returns a file's sha256, after comparing it with the one under `key` in a JSON file, if that notes one.

    Raises:
        DataError: there is no such file, or the one with the note is not JSON.
        CorruptError: a byte of the file has changed, or of the note.
    """
    sha256 = sha256_file(require_file(path))
    noted = (read_object(noted_in).get(key) if noted_in.is_file() else None) or sha256
    if noted != sha256:
        raise CorruptError(
            f"{path}: damaged: its sha256 is not the one in {noted_in.name}; get it back with `dvc checkout`, or run "
            "the stage that writes it again"
        )
    return sha256


def weights_digest(directory: Path) -> str:
    """Hex sha256 of the weights. Raises DataError if the file is missing."""
    return sha256_file(require_file(directory / WEIGHTS))


def tokenizer_of(directory: Path) -> Path:
    """The folder of a model's tokenizer. Raises DataError if the model folder has none."""
    folder = directory / TOKENIZER_FOLDER
    if not (folder / TOKENIZER).is_file():
        if not (directory / CONFIG).is_file():
            raise DataError(f"{directory}: no model here ({CONFIG} is missing); run the stage that writes it")
        raise DataError(
            f"{directory}: the model has no tokenizer ({TOKENIZER_FOLDER}/{TOKENIZER} is missing); run the stage that "
            f"writes the folder again, or copy the tokenizer that it was trained with to {folder}"
        )
    return folder


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies a tokenizer's files into a model folder without one. Raises DataError if there is none in `source`."""
    require_file(source / TOKENIZER)
    folder = directory / TOKENIZER_FOLDER
    folder.mkdir()
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def require_file(path: Path) -> Path:
    """The path itself. Raises DataError if there is no such file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the stage that writes it")
    return path


def library_model(directory: Path) -> str | None:
    """The model_type of a folder of transformers, or `open_clip`, of those that are measured as they are; else None.

    Folders with both have the same model twice; transformers needs no other package.
    """
    try:
        kind = read_object(directory / CONFIG).get("model_type")
    except DataError:
        kind = None
    known: str | None = kind if kind in TRANSFORMERS else None
    if (directory / f"{OPEN_CLIP}_config.json").is_file() and not (known and (directory / WEIGHTS).is_file()):
        return OPEN_CLIP
    return known


def require_own_files(directory: Path) -> None:
    """Checks that a library which reads a folder of others reads nothing outside of it, and waits for no pipe. Raises
    DataError if a link leads out of the folder, an entry is no file, or an index of weights names files elsewhere.
    """
    home = directory.resolve()
    for path in sorted(directory.iterdir()):
        try:
            inside = path.resolve().is_relative_to(home) and (path.is_file() or path.is_dir())
        except (OSError, RuntimeError):  # a link to itself
            inside = False
        if not inside:
            raise DataError(
                f"{path}: no file of this folder; copy what a link names (`cp -rL`), and leave out the rest"
            )
        weights = read_object(path).get("weight_map") if path.name.endswith(".index.json") else None
        if isinstance(weights, dict) and any(Path(str(name)).name != name for name in weights.values()):
            raise DataError(f"{path}: names weights that are no files of this folder")


def require_model(directory: Path) -> None:
    """Checks that a folder is a model of this project, or one that is measured as it is. Raises as `read_config`."""
    if library_model(directory) is None:
        read_config(directory)


def unpacked(folder: Path) -> Path:
    """The model folder itself, or the one in a packaged model."""
    inner = sorted(folder.glob(f"artifacts/*/{CONFIG}"))
    return inner[0].parent if len(inner) == 1 and not (folder / CONFIG).is_file() else folder


def model_digest(directory: Path) -> str:
    """sha256 over the files that decide an embedding: weights, configuration and vocabulary. Raises DataError if one of
    them is missing; CorruptError if one is damaged, so that the digest would name no model.
    """
    if library_model(directory) is not None:
        found = {path.name: sha256_file(path) for path in sorted(directory.iterdir()) if path.suffix in _DECIDING}
    else:
        words = tokenizer_of(directory)
        found = {
            WEIGHTS: require_unchanged(directory / WEIGHTS, directory / CONFIG, "weights_sha256"),
            CONFIG: sha256_file(require_file(directory / CONFIG)),
            TOKENIZER: require_unchanged(words / TOKENIZER, words / TOKENIZER_CONFIG, "sha256"),
        }
    return hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in found.items()).encode()).hexdigest()
