"""Fills the tables of documents from the results of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from svag_tf.experiments.benchmark.report import overview, provenance, targets
from svag_tf.experiments.benchmark.targets import judged
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import write_text

CASES = ("matrices", "resnet50", "bert", "tiny")
ROWS = (
    *("msvag", "msvag-xla", "msvag-bfloat16"),
    *("keras-adam", "keras-adam-compiled", "torch-adamw-fused"),
)
BLOCK = re.compile(r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(workdir: Path, documents: Iterable[str]) -> None:
    """Writes a run's numbers between `<!-- benchmark: NAME -->` and `<!-- end -->`.

    NAME is "speed" (six rows in four cases), "targets" or "run" (the command, machine
    and software). A document without such a block is an error.
    """
    try:
        results = json.loads((workdir / "benchmark.json").read_text(encoding="utf-8"))
        texts = {Path(d): Path(d).read_text(encoding="utf-8") for d in documents}
    except OSError as error:
        raise ExperimentError(f"Cannot be read: {error}") from error
    for path, text in texts.items():
        if not BLOCK.search(text):
            raise ExperimentError(f"{path} has no block '<!-- benchmark: ... -->'.")
        new = BLOCK.sub(
            lambda m: m[1] + "\n" + block(results, m[2]) + "\n" + m[3], text
        )
        write_text(path, new)


def block(results: dict[str, Any], name: str) -> str:
    """Returns the Markdown of a block."""
    if name == "speed":
        return overview(results, CASES, ROWS)
    if name == "targets":
        return targets(results | {"targets": judged(results)})
    if name == "run":
        return provenance(results)
    raise ExperimentError(f"There is no block {name!r}: speed, targets or run.")
