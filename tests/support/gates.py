"""What tests of the quality gates share: small tables with a fault, and gates whose outcomes the test chooses."""

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.infrastructure import EngineConfig
from align.durable.files import replace_directory
from align.formats.acceptances import read_acceptances
from align.interfaces.expectations import Outcome
from align.validate.page import gate_page
from align.validate.report import judge, require_holds, write_gate
from align.validate.validate import accept
from tests.support.params import load_params
from tests.support.small_data import Pair

ENGINE = (
    load_params().section(EngineConfig).model_copy(update={"memory_limit": "300MB", "num_threads": 1, "num_workers": 1})
)
#: Digests of two versions of data.
DATA, OTHER_DATA = "a" * 64, "b" * 64


def pairs():
    """20 pairs: 14 kept (0.7), 3 too small (0.15), 3 too short (0.15)."""
    rows = [Pair(f"picture number {index}", index) for index in range(14)]
    rows += [Pair(f"small picture {index}", 20 + index, reason="image_too_small") for index in range(3)]
    return rows + [Pair("short", 30 + index, reason="text_too_short") for index in range(3)]


def rewrite(path, change):
    """Changes the rows of a table."""
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def outcome(name, *, passed):
    """An outcome of an expectation that is called `name`."""
    return Outcome(
        name=name, what=f"what {name} says", expectation="expect_this()", observed="1", threshold="0", passed=passed,
    )  # fmt: skip


def run_gate(root, *failed, data=DATA):
    """Publishes the report of a gate of three expectations, a, b and c, in `root/quality`; `root` is the policy."""
    outcomes = [outcome(name, passed=name not in failed) for name in ("a", "b", "c")]
    accepted = read_acceptances(root)
    report = judge(outcomes, data=data, accepted=accepted, prefix="quality", metrics={"quality/x": 7})
    with replace_directory(root / "quality", "validate") as part:
        write_gate(report, gate_page(report, "Data quality", []), part)
    require_holds(report, root / "quality")
    return report


def accept_failure(root, name, reason="known and harmless", by="Ada"):
    """Accepts failures of `run_gate`: one, or several with commas between them."""
    accept(name.split(","), reason, by, "2026-01-31", reports=[root / "none", root / "quality"], policy=root)


def check_that_fails(*failed):
    """Every expectation passes but those of these names; `observed` is the column of the table, where it has one."""

    def check(tables, expectations):
        return [
            Outcome(
                name=item.name, what=item.what, expectation=item.kind, threshold=item.threshold,
                observed=str(tables[item.table][item.arguments["column"]][0]) if "column" in item.arguments else "",
                passed=item.name not in failed,
            )
            for item in expectations
        ]  # fmt: skip

    return check
