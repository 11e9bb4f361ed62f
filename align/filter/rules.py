"""The rules that decide which pairs are kept (paper section 3), as SQL conditions over what is known of a pair.

Each rule is a function from the section `filter` to a condition that is true for what is *dropped*, or to None if it
is switched off (then it costs nothing). Their order in `RULES` is the rule order: a pair's `reason` is the first rule
that drops it, `reasons` are all of them. `align.filter.tables` has the columns that conditions use.

Decisions where the paper is silent:
  * the order: images before texts, as the paper describes them;
  * I4 counts distinct normalised texts per image *content* (sha256), without the empty text, over the images that were
    fetched: nobody knows the content of an address that ingest skipped (`ingest.skip_hopeless`). T3, or the rule on
    file names, drops each text of such an address wherever it occurs, so skipping changes the decision of no other
    rule;
  * T1 counts distinct images, by content, or by URL where there are no bytes; an empty text is left to T3;
  * T2 counts every occurrence in every raw pair, dropped ones too. The list is cut at a count: it holds all n-grams
    that occur at least c times, with the smallest c that gives at most the paper's number. So ties never depend on
    order.
  * I1 and I5's embedding are computed only for images that some pair would keep under all other rules: the network
    costs more than everything else together.
  * T3 also drops texts of very many characters without looking at their words: one "word" may fill a page.
Deviations: `image_missing` (a dead link; the paper's pairs all had bytes), `text_is_filename` (see
`align.pairs.text.is_filename`), `image_not_fetched` and `opted_out` (take-down requests, `align.formats.policy`) are
not in the paper. Nor are the rules after `image_not_fetched`. These are off by default and exist to compare recipes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from align.config.filter import FilterConfig
from align.formats.statuses import FAILED_TO_RESIZE, NOT_FETCHED

Rule = Callable[[FilterConfig], str | None]


def opted_out(config: FilterConfig) -> str:
    """Somebody asked for the picture to be removed (data/policy/opted_out.csv)."""
    return "opted_out IS NOT NULL"


def image_missing(config: FilterConfig) -> str:
    """No bytes: the download failed, or the tar lacks an image that the table names."""
    return f"status NOT IN ('{FAILED_TO_RESIZE}', '{NOT_FETCHED}') AND NOT has_bytes"


def image_undecodable(config: FilterConfig) -> str:
    """I0: the bytes do not decode to a picture, or the picture is above the size limit."""
    return f"status = '{FAILED_TO_RESIZE}' OR (has_bytes AND NOT decodable)"


def image_nsfw(config: FilterConfig) -> str:
    """I1: the classifier's score reaches the threshold."""
    return f"nsfw_score >= {double(config.nsfw_threshold)}"


def image_too_small(config: FilterConfig) -> str:
    """I2: the shorter side must be greater than 200 px: 200 is dropped, 201 kept."""
    return f"least(width_px, height_px) <= {config.short_side_above_px}"


def image_aspect_ratio(config: FilterConfig) -> str:
    """I3: long side / short side must be below 3; 3.0 is dropped."""
    return f"greatest(width_px, height_px) >= {double(config.aspect_ratio_below)} * least(width_px, height_px)"


def image_too_many_texts(config: FilterConfig) -> str:
    """I4: at most 1000 distinct texts per image; with 1001 it is dropped."""
    return f"num_texts > {config.max_texts_per_image}"


def image_near_duplicate_of_test(config: FilterConfig) -> str:
    """I5: shows the same picture as an image of an evaluation set."""
    return "num_evaluation_sets > 0"


def text_shared_by_many_images(config: FilterConfig) -> str:
    """T1: at most 10 distinct images per text; with 11 it is dropped."""
    return f"num_images > {config.max_images_per_text}"


def text_rare_ngram(config: FilterConfig) -> str:
    """T2: some unigram or bigram is not among the most frequent ones of the raw data."""
    return "rare_ngram"


def text_too_short(config: FilterConfig) -> str:
    """T3: fewer than 3 unigrams; 2 are dropped, 3 kept."""
    return f"num_words < {config.min_words}"


def text_too_long(config: FilterConfig) -> str:
    """T3: more than 20 unigrams; 21 are dropped, 20 kept. Or more characters than any text of 20 words needs."""
    return f"num_words > {config.max_words} OR num_characters > {config.max_characters}"


def text_is_filename(config: FilterConfig) -> str | None:
    """Ours: the text is a file name, a path or a URL."""
    return "is_filename" if config.drop_filenames else None


def image_not_fetched(config: FilterConfig) -> str:
    """Ours: ingest did not ask for the picture, since no text of it could pass.

    It comes after the rules on texts, which say why.
    """
    return f"status = '{NOT_FETCHED}'"


def pair_low_similarity(config: FilterConfig) -> str | None:
    """Beyond ALIGN: a given model finds image and text too unlike. It sees only pairs that all rules above keep."""
    if config.similarity_model is None:
        return None
    share = config.keep_similarity_share
    outside = "" if share is None else f" OR outside_best = {double(share)}"
    return f"similarity < {double(config.min_similarity)}{outside}"


def text_other_language(config: FilterConfig) -> str | None:
    """Beyond ALIGN: the text is in none of the wanted languages; one whose language cannot be told is kept."""
    if config.languages is None:
        return None
    return f"language NOT IN ({', '.join(repr(code) for code in config.languages)})"


def text_personal_data(config: FilterConfig) -> str | None:
    """Beyond ALIGN: the text has an e-mail address or a phone number."""
    return "num_emails + num_phones > 0" if config.drop_personal_data else None


def pair_licence(config: FilterConfig) -> str | None:
    """Ours: the page names no licence, or none of those that are allowed (`filter.licences`)."""
    return "NOT licence_allowed" if config.licences else None


def image_repeat(config: FilterConfig) -> str | None:
    """Beyond ALIGN: another pair with the same image content has a smaller key, and all rules above keep both."""
    return "repeats" if config.drop_repeats == "image" else None


def pair_repeat(config: FilterConfig) -> str | None:
    """Beyond ALIGN: another pair with the same image and text has a smaller key, and all rules above keep both."""
    return "repeats" if config.drop_repeats == "pair" else None


#: Every rule by its reason code, in rule order.
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        opted_out,
        image_missing,
        image_undecodable,
        image_nsfw,
        image_too_small,
        image_aspect_ratio,
        image_too_many_texts,
        image_near_duplicate_of_test,
        text_shared_by_many_images,
        text_rare_ngram,
        text_too_short,
        text_too_long,
        text_is_filename,
        image_not_fetched,
        pair_low_similarity,
        text_other_language,
        text_personal_data,
        pair_licence,
        image_repeat,
        pair_repeat,
    )
}
#: Rules that are decided after the network has scored the images of pairs that all other rules keep; ...
NETWORK = ("image_nsfw", "image_near_duplicate_of_test")
#: ... rules that are decided after a given model has compared the pairs that are still kept; ...
MODEL = ("pair_low_similarity",)
#: ... rules that are decided after that.
REPEATS = ("image_repeat", "pair_repeat")
#: All others. (Near-duplicates by hash are known from the start.)
CHEAP = tuple(code for code in RULES if code not in ("image_nsfw", *MODEL, *REPEATS))


def active(config: FilterConfig) -> list[str]:
    """The codes of the rules that are switched on, in rule order."""
    return [code for code, rule in RULES.items() if rule(config) is not None]


def conditions(config: FilterConfig) -> dict[str, str | None]:
    """When each rule drops a row, for people to read; None if it is switched off."""
    written = {code: rule(config) for code, rule in RULES.items()}
    return {code: text and re.sub(r"CAST\((\S+) AS DOUBLE\)", r"\1", text) for code, text in written.items()}


def mask(config: FilterConfig, codes: tuple[str, ...]) -> str:
    """SQL: a number with one bit for each of these rules that drops the row; 0 if none does. See `codes_of`."""
    conditions = {code: RULES[code](config) for code in codes}
    cases = [
        f"CASE WHEN {condition} THEN {1 << bit} ELSE 0 END"
        for bit, code in enumerate(RULES)
        if (condition := conditions.get(code)) is not None
    ]
    return f"CAST({' + '.join(cases) or '0'} AS BIGINT)"


def codes_of(number: int) -> list[str]:
    """The codes of a `mask`, in rule order."""
    return [code for bit, code in enumerate(RULES) if number >> bit & 1]


def double(value: float) -> str:
    """SQL: the number, the same in each engine."""
    return f"CAST({value!r} AS DOUBLE)"
