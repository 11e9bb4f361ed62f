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
        num_threads: torch's, of a forward pass; None: all cores but one, which answers requests.
        max_body_bytes: of a request with a picture.
        request_timeout_s: until when a request must have its answer, counted from its head.
        max_image_pixels: of a query's picture, by its header.
        max_connections: at a time; more wait.
    """

    section: ClassVar[str] = "serve"
    changes_bytes: ClassVar[bool] = False

    poll_s: Seconds
    num_threads: Count | None
    max_body_bytes: Annotated[int, Field(ge=1024)]
    request_timeout_s: Seconds
    max_image_pixels: Annotated[int, Field(ge=1, le=100_000_000)]
    max_connections: Count
