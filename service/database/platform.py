"""What is wrong with the platform's relations: `migrate` and the start of `serve` say the same."""

from collections.abc import Iterable
from typing import Any

EXAMPLE = "deploy/platform_views.sql"


def faults(rows: Iterable[Any], *, may_be_missing: bool = False) -> str | None:
    """All faults in one line, from the rows of sql/platform_faults.sql; None where there are none.

    `may_be_missing`: whether a relation that is not there will be made, and is no fault.
    """
    found = [fault for fault, missing in rows if not (missing and may_be_missing)]
    return f"{'; '.join(found)}: see {EXAMPLE}" if found else None
