"""Section `register`: what things are called in MLflow."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section

#: MLflow's own searches quote names, so quotes are no part of one.
Name = Annotated[str, Field(pattern=r"^[\w.\- ]+$")]


class RegisterConfig(Section):
    """Names in MLflow."""

    section: ClassVar[str] = "register"

    experiment: Name
    model_name: Name
