"""import_model: a folder of `transformers.AlignModel`, such as kakaobrain/align-base -> a model folder of this project.

Every command takes the result: `--set paths.finetuned=OUT` to embed, search, evaluate or package, `finetune.from` to
start from it in the DAG. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from align.config import Params
from align.config.model import ModelConfig
from align.display.console import say
from align.durable.files import replace_directory, require_apart, require_replaceable
from align.errors import DataError
from align.formats.model_folder import TOKENIZER_FOLDER, Imported, weights_digest
from align.model.dual_encoder import DualEncoder, save_model
from align.model.tokenizer import save_tokenizer
from align.release.exchange.interchange import read_hugging_face
from align.services.dvc.outs import require_no_out


def import_model(config: ModelConfig, source: Path, out: Path) -> DualEncoder:
    """Reads the folder and writes a folder of this project.

    Args:
        config: section `model`; the batch norm is taken from it, since the folder does not specify it.
        source: a folder in Hugging Face's format, with tokenizer and image processor.
        out: replaced whole.

    Raises:
        DataError: the folder is missing or incomplete, or holds another architecture; or `out` may not be replaced.
        ConfigError: a stage of dvc.yaml writes to `out`.
    """
    if not source.is_dir():
        raise DataError(
            f"--from {source}: no such folder; name one in Hugging Face's format, such as a clone of align-base"
        )
    require_apart(out, source)
    require_replaceable(out, "import_model")  # checked before the weights are read, too
    require_no_out("--out", out)
    model, tokenizer = read_hugging_face(source, batch_norm_group=config.batch_norm_group)
    with replace_directory(out, "import_model") as part:
        imported = Imported(folder=source.resolve().name, weights=weights_digest(source))
        save_model(model, part, stage="import_model", imported=imported, trained_on=())
        (part / TOKENIZER_FOLDER).mkdir()
        save_tokenizer(tokenizer, part / TOKENIZER_FOLDER, max_tokens=model.config.max_tokens)
    return model


def main(params: Params, args: argparse.Namespace) -> None:
    """`align import_model`."""
    model = import_model(params.section(ModelConfig), args.source, args.out)
    tower, text = model.config.image_tower, model.config.text_tower
    num_params = sum(param.numel() for param in model.parameters())
    say(
        f"import_model: {num_params / 1e6:.2f} M parameters, image tower {tower}, text tower {text}, width "
        f"{model.config.embed_width}, pictures of {model.config.resize_px} px -> {args.out}"
    )
    say(
        f"import_model: try it with `align embed ... --set paths.finetuned={args.out}`; to evaluate, tune and register "
        f"it, keep it with `dvc add {args.out}` and set finetune.from: {args.out} (docs/own-model.md)"
    )
