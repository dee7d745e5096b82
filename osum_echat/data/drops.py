"""What was left out and why: counted by list and reason, told in the log, written to a report."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat.data.sources import Dropped
from osum_echat.errors import DataError
from osum_echat.logs import logger

LOG = logger(__name__)
_EXAMPLES = 20  # of each list and reason, in the report
_FILES_TOLD = 20


@dataclass(frozen=True, slots=True)
class Drop:
    """A record of a list that was left out."""

    source: str
    dropped: Dropped


class Drops:
    """Counts of what was left out. `report`: the file they are written to, None for none.

    bad_in_a_row: so many broken records one after the other end the reading; 0: never.
    """

    def __init__(self, report: Path | None = None, bad_in_a_row: int = 0) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.read = 0  # records looked at
        self._examples: dict[tuple[str, str], list[str]] = {}
        self._report, self._limit = report, bad_in_a_row
        self._bad: list[str] = []

    def add(self, outcomes: list[Drop | None], first_look: bool = True) -> None:
        """Count outcomes in the order of reading; None stands for a record that is fine.

        first_look: whether the records are seen for the first time, or now decoded. Raises
        DataError, naming the files, when too many in a row are broken.
        """
        for outcome in outcomes:
            self.read += first_look
            if outcome is None:
                self._bad.clear()
                continue
            self._count(outcome)
            file = outcome.dropped.file
            if file is None:
                continue
            self._bad.append(file)
            if 0 < self._limit <= len(self._bad):
                self.write({})
                files = list(dict.fromkeys(self._bad))
                more = f" and {len(files) - _FILES_TOLD} more" if len(files) > _FILES_TOLD else ""
                raise DataError(
                    f"{len(self._bad)} records in a row are broken, the last: "
                    f"{outcome.dropped.detail}; mend or leave out {', '.join(files[:_FILES_TOLD])}"
                    f"{more}, or raise data.bad_in_a_row"
                )

    def words(self) -> str:
        """The counts in one line."""
        return "; ".join(
            f"{source}: {reason} {count}" for (source, reason), count in self.counts.most_common()
        )

    def write(self, place: dict[str, int]) -> None:
        """Write the report, with the place in the data that the counts belong to."""
        if self._report is None:
            return
        rows = [
            {"list": source, "reason": reason, "count": count,
             "first": self._examples.get((source, reason), [])}
            for (source, reason), count in self.counts.most_common()
        ]  # fmt: skip
        report = {"read": self.read, "dropped": self.counts.total(), "place": place, "drops": rows}
        part = self._report.with_name(f"{self._report.name}.part")
        self._report.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
        part.replace(self._report)

    def go_on(self, place: dict[str, int]) -> None:
        """Take up the counts of the report where they belong to this place; else begin at none."""
        self.counts.clear()
        self._examples.clear()
        self._bad.clear()
        self.read = 0
        report = _read(self._report)
        if report.get("place") != place:
            return
        self.read = int(report["read"])
        for row in report["drops"]:
            name = (str(row["list"]), str(row["reason"]))
            self.counts[name] = int(row["count"])
            self._examples[name] = [str(one) for one in row["first"]]

    def _count(self, drop: Drop) -> None:
        name = (drop.source, drop.dropped.reason)
        self.counts[name] += 1
        examples = self._examples.setdefault(name, [])
        if len(examples) < _EXAMPLES:
            examples.append(drop.dropped.detail)
        if self.counts[name] == 1:
            LOG.warning("%s: first drop, %s: %s", *name, drop.dropped.detail)


def _read(report: Path | None) -> dict[str, Any]:
    if report is None or not report.is_file():
        return {}
    try:
        read = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        LOG.warning("%s: cannot be read (%s); counting from none", report, error)
        return {}
    return read if isinstance(read, dict) else {}
