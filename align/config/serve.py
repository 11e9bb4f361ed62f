"""Section `serve`: the limits of the search service, and how it follows the champion."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ServeConfig(Section):
    """Bounds of what one request, and all of them together, may take. No stage reads this.

    Attributes:
        poll_s: between two looks at the registry's alias.
        max_batch: texts and pictures of one forward pass.
        max_waiting: queries that wait at a time; a further one is answered with 503.
        num_threads: torch's, of a forward pass; None: all cores but one, which answers requests.
        cached_texts: embeddings of texts that are kept; 0: none.
        max_body_bytes: of a request with pictures.
        max_text_bytes: of any other request, and of a request without its pictures.
        request_timeout_s: until when a request must have its answer, counted from its head.
        max_image_pixels: of a query's picture, by its header.
        decode_timeout_s: for the process that decodes one.
        max_text_characters: of one text.
        max_words: different words that a query may ask for in the alt-texts.
        max_inputs: texts and pictures of one request to /embed.
        results_per_page: without `limit`.
        max_results: the number of results that paging can reach.
        max_requests_per_s: of one client, on average; None: no limit. A picture counts as a tenth.
        max_burst: of one client, after a pause.
        max_connections: at a time; a new one takes the place of one that waits.
        max_connections_per_address: of one client; None: no such bound.
        head_timeout_s: until when a request's head must be here, and until when a client must read.
    """

    section: ClassVar[str] = "serve"
    changes_bytes: ClassVar[bool] = False

    poll_s: Seconds
    max_batch: Count
    max_waiting: Count
    num_threads: Count | None
    cached_texts: Annotated[int, Field(ge=0)]
    max_body_bytes: Annotated[int, Field(ge=1024)]
    max_text_bytes: Annotated[int, Field(ge=1024)]
    request_timeout_s: Seconds
    max_image_pixels: Annotated[int, Field(ge=1, le=100_000_000)]
    decode_timeout_s: Seconds
    max_text_characters: Count
    max_words: Count
    max_inputs: Count
    results_per_page: Annotated[int, Field(ge=1, le=100)]
    max_results: Annotated[int, Field(ge=100)]
    max_requests_per_s: Annotated[float, Field(gt=0)] | None
    max_burst: Count
    max_connections: Count
    max_connections_per_address: Count | None
    head_timeout_s: Seconds
