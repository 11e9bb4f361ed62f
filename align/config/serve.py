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
        max_batch: queries that one forward pass answers.
        max_waiting: queries that wait at a time; a further one is answered with 503.
        num_threads: torch's, of a forward pass; None: all cores but one, which answers requests.
        cached_texts: embeddings of texts that are kept; 0: none.
        max_body_bytes: of a request.
        body_timeout_s: until when a request's body must be here.
        max_image_pixels: of a query's picture, by its header.
        decode_timeout_s: for the process that decodes one.
        max_text_characters: of one text.
        max_inputs: texts and pictures of one request to /embed.
        results_per_page: without `limit`.
        max_results: how far paging leads.
        max_requests_per_s: of one client, on average; None: no limit. A picture counts as a tenth.
        max_burst: of one client, after a pause.
    """

    section: ClassVar[str] = "serve"
    changes_bytes: ClassVar[bool] = False

    poll_s: Seconds
    max_batch: Count
    max_waiting: Count
    num_threads: Count | None
    cached_texts: Annotated[int, Field(ge=0)]
    max_body_bytes: Annotated[int, Field(ge=1024)]
    body_timeout_s: Seconds
    max_image_pixels: Annotated[int, Field(ge=1, le=100_000_000)]
    decode_timeout_s: Seconds
    max_text_characters: Count
    max_inputs: Count
    results_per_page: Annotated[int, Field(ge=1, le=100)]
    max_results: Annotated[int, Field(ge=100)]
    max_requests_per_s: Annotated[float, Field(gt=0)] | None
    max_burst: Count
