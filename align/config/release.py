"""What happens to a model that is trained: `register` (names in MLflow), `promote` (when a candidate becomes the
champion).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class PromoteConfig(Section):
    """The metrics that are compared, and how sure the decision must be. No stage reads this."""

    section: ClassVar[str] = "promote"
    changes_bytes: ClassVar[bool] = False

    metrics: Annotated[list[str], Field(min_length=1)]
    margin: Annotated[float, Field(ge=0, lt=1)]
    confidence: Annotated[float, Field(ge=0.5, le=0.999)]
    min_times_chance: Annotated[float, Field(ge=0)]
    slice_margin: Annotated[float, Field(ge=0, le=1)]
    #: A person must approve each promotion whose gates passed.
    approval: bool
    #: Hours that the flow `approve` waits for an answer; a year at most.
    approval_timeout_h: Annotated[float, Field(gt=0, le=8760)]


def lower_bar(times: str) -> str:
    """What lowers the bar of the gate `above chance`, and what each costs. `times`: the multiple to set, in words."""
    return (
        f"what lowers the bar: promote.min_times_chance {times} (1 asks only for more than a random order); a smaller "
        "k in promote.metrics, such as recall@1 (a wider interval); a larger shard.test_fraction (its pictures are not "
        "trained on)"
    )


#: MLflow's searches put names in quotes, so a name contains no quote.
Name = Annotated[str, Field(pattern=r"^[\w.\- ]+$")]


class RegisterConfig(Section):
    """Names in MLflow. No stage reads them."""

    section: ClassVar[str] = "register"
    changes_bytes: ClassVar[bool] = False

    experiment: Name
    model_name: Name
