"""The types of requests and answers, from which the OpenAPI description is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, FailFast, Field, model_validator

from align.search.surely import LEVELS

#: The model reads the first max_tokens of a text only.
Text = Annotated[str, Field(max_length=1000)]
Key = Annotated[str, Field(min_length=1, max_length=500)]
Conditions = Annotated[list[Annotated[str, Field(min_length=1, max_length=1200)]], FailFast(), Field(max_length=16)]


def _level(value: float) -> float:
    if value not in LEVELS:
        raise ValueError(f"{value:g} is not promised; {' or '.join(map(str, LEVELS))} is")
    return value


Level = Annotated[float, AfterValidator(_level), Field(json_schema_extra={"enum": list(LEVELS)})]
#: Results that paging can reach.
MAX_RESULTS = 1000
#: Column of a catalogue -> value; empty for an index of shards.
Columns = dict[str, str | int | float | None]


class SearchQuery(BaseModel, extra="forbid"):
    """A search: one of text, key, and a picture that comes beside it; or none, and a filter that lists pictures.

    Attributes:
        text: what the pictures should show.
        key: of an indexed picture: pictures like it.
        plus: words to add to a picture.
        minus: words to take away from a picture.
        weight: of these words; the picture's is 1.
        split: only pictures of this part of the data.
        words: only pictures whose alt-texts have each of these words.
        where: only pictures whose columns fulfil each of these conditions, such as `price<=20`.
        offset: number of results to leave out.
        limit: highest number of results.
        surely: how sure the pictures above the line are to be.
    """

    text: Text | None = None
    key: Key | None = None
    plus: Text | None = None
    minus: Text | None = None
    weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    split: Literal["train", "val", "test"] | None = None
    words: Text | None = None
    where: Conditions = []
    offset: Annotated[int, Field(ge=0, le=MAX_RESULTS)] = 0
    limit: Annotated[int, Field(ge=1, le=100)] = 24
    surely: Level = LEVELS[0]

    @property
    def texts(self) -> list[str]:
        """What is to be embedded, in the order in which `queries.answer` takes it."""
        return [text for text in (self.text, self.plus, self.minus) if text is not None]

    def describe(self) -> str:
        """The query in words."""
        if self.text is not None:
            return self.text
        words = f"picture {self.key}" if self.key else "the picture"
        return words + (f" + “{self.plus}”" if self.plus else "") + (f" - “{self.minus}”" if self.minus else "")


class ServedVersion(BaseModel):
    """The model and the index that answered.

    Attributes:
        name: of the registered model, or of a checkout's folder, without the path.
        version: its number; null for a checkout's own model.
        run_id: the MLflow run that made it.
        model_digest: of the model's files, by which the index names it.
        digest: names the model together with the index.
        origin: what trained the model, in words.
    """

    name: str
    version: int | None
    run_id: str | None
    model_digest: str
    digest: str
    origin: str


class Shown(BaseModel):
    """An indexed picture.

    Attributes:
        key: names it in this service and in `align trace`.
        image_id: sha256 of its original bytes.
        split: the part of the data that has it.
        texts: its alt-texts.
        image: the address of its picture on this server.
        columns: of its row in a catalogue.
    """

    key: str
    image_id: str
    split: str
    texts: list[str]
    image: str
    columns: Columns


class SearchHit(Shown):
    """A picture that was found.

    Attributes:
        rank: from 1 over all pages.
        score: its cosine with the query.
        sure: whether it is above the line, see `SearchAnswer.promise`; null: there is no line.
    """

    rank: int
    score: float
    sure: bool | None = None


class SearchAnswer(BaseModel):
    """The results of a search, nearest first; of a filter alone in the order of the index, with scores of 0.

    Attributes:
        query: in words.
        served: what answered.
        num_images: in the index, without those taken down.
        offset: as asked.
        more: whether there are results after these.
        hint: where no picture meets the conditions, the values that there are; else empty.
        promise: in words: what the line between `sure` hits and the others means, or why there is none.
        hits: one page of them, fewer than `limit` where so many would be long.
    """

    query: str
    served: ServedVersion
    num_images: int
    offset: int
    more: bool
    hint: str
    promise: str
    hits: list[SearchHit]


class StartAnswer(BaseModel):
    """What a page begins with.

    Attributes:
        served: what answers.
        num_images: in the index, without those taken down.
        example: words to search for: a text of one of the pictures; null where there is none.
        columns: column of a catalogue -> its texts to choose from; empty: they are many; null: it has numbers.
        hits: some pictures, evenly over the index; their scores are 0.
    """

    served: ServedVersion
    num_images: int
    example: str | None
    columns: dict[str, list[str] | None]
    hits: list[SearchHit]


class EmbedRequest(BaseModel, json_schema_extra={"additionalProperties": False}):
    """Texts to embed."""

    texts: Annotated[list[Text], FailFast(), Field(min_length=1, max_length=64)]

    @model_validator(mode="before")
    @classmethod
    def _only_texts(cls, given: Any) -> Any:
        """One error for the first unknown field. `extra="forbid"` makes one for each, and a body has room for 5,000."""
        if isinstance(given, dict):
            for name in given:
                if name not in cls.model_fields:
                    raise ValueError(f"unknown field {name[:100]!r}")
        return given


class EmbedAnswer(BaseModel):
    """L2-normalised embeddings, in the order of the request; a dot product is the cosine."""

    served: ServedVersion
    embeddings: list[list[float]]


class RuleShown(BaseModel):
    """A rule of the filter and what it said of a pair.

    Attributes:
        rule: its code.
        what: what it drops, in words.
        drops_where: the same as a condition; null if it was off.
        verdict: `drops`, `passes`, `off` or `unknown`.
        values: the values that it looked at; empty if they are not known.
    """

    rule: str
    what: str
    drops_where: str | None
    verdict: str
    values: str


class FoundPair(BaseModel):
    """A pair behind a picture, and where it was found: foreign text, to be checked before it becomes a link.

    Attributes:
        key: names the pair.
        text: its alt-text, as the model sees it.
        page_url: the page; null if that was not recorded.
        url: the picture's address on the web then; null if it had none.
    """

    key: str
    text: str
    page_url: str | None
    url: str | None


class PairShown(BaseModel):
    """The decision on the first pair behind a picture: from the data if it is here, else from the index.

    Attributes:
        text: its alt-text as the filter saw it.
        kept: whether the filter kept it; null before it ran.
        rules: every rule, in order; none if nobody knows them.
        notes: what does not fit, such as data of another version, or where this is known from.
    """

    text: str | None
    kept: bool | None
    rules: list[RuleShown]
    notes: list[str]


class ItemAnswer(Shown):
    """What is known of an indexed picture.

    Attributes:
        shard: the tar that has it.
        offset_bytes: where its JPEG begins in that tar.
        found: its pairs, and where they were found.
        served: the model and the index.
        version_tags: of the registered version: its data, when and why it was promoted, its revision.
        trained_on: in words: whether this model was trained on the picture.
        picture_missing: why there is no picture; null if there is one.
        pair: the decision on its first pair.
    """

    shard: str
    offset_bytes: int
    found: list[FoundPair]
    served: ServedVersion
    version_tags: dict[str, str]
    trained_on: str
    picture_missing: str | None
    pair: PairShown


class Health(BaseModel):
    """Whether the service is well.

    Attributes:
        live: always true in an answer.
        ready: whether it can answer queries.
        served: what it serves; null before there is a champion.
        num_images: in its index, without those taken down.
        take_downs: sha256 of the list of take-downs that it obeys; null: it has none, see warnings.
        num_taken_down: images of its index that it does not show.
        pictures: why pictures cannot be shown; null if they can.
        warnings: what a person should look at.
    """

    live: bool
    ready: bool
    served: ServedVersion | None
    num_images: int
    take_downs: str | None
    num_taken_down: int
    pictures: str | None
    warnings: list[str]


class Refusal(BaseModel):
    """Why a request was not answered, in one line."""

    error: str
