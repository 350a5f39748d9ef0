"""A report's tables as CSV (RFC 4180): of a published table the long form, one line per comparison."""

import csv
import io

from harness.reports.document import Table
from harness.reports.marks import MARKS


def table(value: Table) -> str:
    """Return one table; marks get a column of their own."""
    value = value.data or value
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*(heading.text for heading in value.headings), "marks"])
    for row in value.rows:
        marked = {mark for entry in row for mark in entry.marks}
        writer.writerow([*(entry.text for entry in row), " ".join(mark for mark in MARKS if mark in marked)])
    return out.getvalue()
