"""Folders that callbacks write to."""

import tempfile
from pathlib import Path


def make_writable(argument: str, path: Path) -> None:
    """Makes a folder if there is none, and writes a byte in it.

    Args:
        argument: Name of the argument that names it.
        path: The folder.

    Raises:
        OSError: Files cannot be written there. Names the argument and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(b"\0")
    except OSError as error:
        raise OSError(
            f"Argument `{argument}` must be a folder that can be written. "
            f"Received: {argument}={str(path)!r}: {error.strerror or error}"
        ) from error
