"""Section `register`: names in MLflow."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section

#: MLflow's searches put names in quotes, so a name contains no quote.
Name = Annotated[str, Field(pattern=r"^[\w.\- ]+$")]


class RegisterConfig(Section):
    """Names in MLflow. No stage reads them."""

    section: ClassVar[str] = "register"
    changes_bytes: ClassVar[bool] = False

    experiment: Name
    model_name: Name
