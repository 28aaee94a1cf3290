"""Exceptions for problems that the user of an experiment can fix."""

import re
import site
import sysconfig
import traceback
from pathlib import Path

LONGEST = 300  # characters of a message that is quoted


class ExperimentError(Exception):
    """A bad config, corrupt or missing data, or a workdir that cannot be used.

    Its message is meant for the user: it says what is wrong, what would be right
    and what was found.
    """


class DivergedError(ExperimentError):
    """A training whose loss is no longer finite."""


def place_and_reason(error: BaseException) -> str:
    """Says in one line where the user's code raised an exception, its kind and message.

    The place is the last line that belongs neither to Python nor to a package.
    """
    libraries = {sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib")}
    libraries |= {*site.getsitepackages(), str(Path(__file__).parents[1])}
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *libraries))
    ]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    return f"{place}: {type(error).__name__}: {text}".removesuffix(": ")
