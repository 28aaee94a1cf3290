"""Tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def markdown(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[int] = (0,),
) -> str:
    """Formats a table whose columns are right-aligned, but for those in `left`."""
    rule = ["---" if i in left else "---:" for i in range(len(headings))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rule, *rows))


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Formats some columns of rows; numbers with the digits of a float32."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: np.float32(v) if isinstance(v, float) else v for k, v in row.items()}
        )
    return text.getvalue()
