"""Builds `limit.c`."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("limit.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")


def compiler() -> list[str]:
    """Returns the C compiler: the environment's CC, or cc."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def build_limit(folder: Path) -> tuple[Path | None, str | None, str | None]:
    """Compiles the program; returns it and the command, or None and the reason."""
    program = folder / "limit"
    command = [*compiler(), *FLAGS, str(SOURCE), "-o", str(program), "-lm"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        why = f"The C compiler {command[0]!r} cannot be run: {error.strerror}"
        return None, None, why
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[0]
        return None, None, f"The C compiler {command[0]!r} failed: {reason}"
    return program, " ".join([*compiler(), *FLAGS]), None
