"""Parameters of `align filter`: one cut per rule of the paper (section 3)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

from align.config.params import Section, Strict

LanguageCode = Annotated[str, Field(pattern="^[a-z]{2}$")]


class GivenFile(Strict):
    """A network, given as a file with its digest. If it were a *stage* of the pipeline, that would be a circle."""

    path: str
    #: Hex sha256 of the file (of a folder: as `align.durable.files.sha256_folder`).
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelFile(GivenFile):
    """A model that makes embeddings.

    .onnx: (N, 3, px, px) float32 in, (N, D) embeddings out; or a folder of `align package` or of another library
    (`align.model.library_embedder`).
    """

    #: Side of the square that pictures are resized to.
    px: Annotated[int, Field(ge=8, le=1024)] = 224
    #: Colour values / 255, less the mean, divided by the deviation.
    mean: Annotated[tuple[float, float, float], Field(strict=False)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, float, float], Field(strict=False)] = (0.229, 0.224, 0.225)


class FilterConfig(Section):
    """The cuts. A pair at a value named `min_...` or `max_...` is kept."""

    section: ClassVar[str] = "filter"

    #: I0: pictures of more pixels are not decoded and count as undecodable.
    max_image_pixels: PositiveInt
    #: I1: dropped at this score or above (0 clean, 1 pornographic).
    nsfw_threshold: float = Field(gt=0, le=1)
    #: I1: another .onnx file with the inputs and outputs of open_nsfw; None: open_nsfw, which the package contains.
    nsfw_model: GivenFile | None
    #: I2: the shorter side must be greater.
    short_side_above_px: NonNegativeInt
    #: I3: long side / short side must be below.
    aspect_ratio_below: float = Field(gt=1)
    #: I4: most distinct texts per image, included.
    max_texts_per_image: PositiveInt
    #: I5: two images are near-duplicates if their embeddings' cosine is above this ...
    near_duplicate_cosine_above: float = Field(ge=-1, le=1)
    #: ... by this network; None: by the NSFW classifier's pooled features, from the same pass.
    near_duplicate_embedder: ModelFile | None
    #: T1: most distinct images per text, included.
    max_images_per_text: PositiveInt
    #: T2: every unigram and bigram must be among this many most frequent ones of the raw data (one joint list).
    num_frequent_ngrams: PositiveInt
    #: T3: fewest words, included. Two characters of a script without spaces are one (`align.pairs.text.num_words`).
    min_words: PositiveInt
    #: T3: most words, included.
    max_words: PositiveInt
    #: T3: most characters of a normalised text, included. Nothing looks at characters beyond. It is below what data/raw
    #: stores (`align.pairs.text.MAX_CHARACTERS`): a text that was cut there must never be kept.
    max_characters: int = Field(ge=1, le=8000)
    #: Ours, not the paper's: drop texts that are a file name, path or URL.
    drop_filenames: bool
    #: Beyond ALIGN: the cosine of image and text by this model must be at least `min_similarity`; None: no such rule.
    similarity_model: ModelFile | None
    min_similarity: float = Field(ge=-1, le=1)
    #: Beyond ALIGN: and it must be among this share of the pairs that the model compares, the most similar ones; None:
    #: no such rule.
    keep_similarity_share: Annotated[float, Field(gt=0, lt=1)] | None
    #: Beyond ALIGN: texts in other languages are dropped (ISO 639-1 codes); None: no such rule.
    languages: Annotated[tuple[LanguageCode, ...], Field(strict=False, min_length=1)] | None
    #: Ours: only pairs whose page names a licence that begins with one of these addresses; none: no such rule.
    licences: Annotated[tuple[Annotated[str, Field(pattern="^https?://[^/]+/")], ...], Field(strict=False)]
    #: Beyond ALIGN: only the first pair of an image content (`pair`: of an image content and a text) is kept.
    drop_repeats: Literal["image", "pair"] | None
    #: Beyond ALIGN: texts with an e-mail address or a phone number are dropped. They are always counted.
    drop_personal_data: bool

    @field_validator("nsfw_model", "near_duplicate_embedder")
    @classmethod
    def _is_network(cls, file: GivenFile | None, info: ValidationInfo) -> GivenFile | None:
        if file is not None and not file.path.endswith(".onnx"):
            raise ValueError(f"{info.field_name}.path: {file.path}: expected .onnx")
        return file

    @model_validator(mode="after")
    def _words_in_order(self) -> FilterConfig:
        if self.min_words > self.max_words:
            raise ValueError(f"filter.min_words {self.min_words} is above filter.max_words {self.max_words}")
        return self

    @model_validator(mode="after")
    def _has_a_model(self) -> FilterConfig:
        if self.keep_similarity_share is not None and self.similarity_model is None:
            raise ValueError("filter.keep_similarity_share needs filter.similarity_model, which compares the pairs")
        return self
