"""A report's tables as CSV (RFC 4180): of a published table the long form, one line per comparison."""

import csv
import io

from harness.document import Report, Table
from harness.summary import MARKS

SUFFIX = ".csv"


def write(report: Report) -> str:
    """Return all tables of the report below one another, each after a line with its title when there are several."""
    tables = report.tables
    if len(tables) == 1:
        return table(tables[0])
    return "\r\n".join(f'"{value.title.replace(chr(34), chr(34) * 2)}"\r\n{table(value)}' for value in tables)


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
