"""Writes an optimizer's state into a store of Keras, and reads it from there.

A store maps names to arrays. Beside the arrays of the variables it gets a record: JSON
that says what they are, with a checksum of everything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from svag_tf import internals

# The key of our record in a store of Keras, beside the variables "0", "1", ...
RECORD = "svag_tf"
# The version of the record.
FORMAT = 2


def write(store: Any, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Puts a record, with a checksum, and its arrays into a store."""
    record = {**record, "crc32": _crc32(record, arrays.values())}
    for i, array in enumerate(arrays.values()):
        store[str(i)] = array
    store[RECORD] = np.frombuffer(json.dumps(record).encode(), np.uint8)


def read(store: Any, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns a store's record, and its arrays by the names of the record's entries.

    Args:
        store: A store with a record, also of another format: all have a checksum.
        name: The optimizer's name, for messages.

    Raises:
        ValueError: If the record or an array is damaged.
    """
    try:
        record = dict(json.loads(np.asarray(store[RECORD]).tobytes()))
        crc32 = record.pop("crc32")
        arrays = {
            entry: np.asarray(store[str(i)])
            for i, entry in enumerate(record["entries"])
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"The saved state of the optimizer {name} is damaged: {error!r}"
        ) from error
    if crc32 != _crc32(record, arrays.values()):
        raise ValueError(
            f"The saved state of the optimizer {name} is damaged: its checksum is not "
            "the one that was saved with it."
        )
    return record, arrays


def entry_with_record(store: Any) -> Any:
    """Returns a store, or the inner or outer optimizer's if that has our record.

    A file may have been saved with a `LossScaleOptimizer` and be loaded without one, or
    the other way round. Keras' class for HDF5 files gives access to other entries.
    """
    path = internals.path_in_file(store)
    if path is None or RECORD in store:
        return store
    inner = "inner_optimizer"
    for other in (f"{path}/{inner}".lstrip("/"), path.removesuffix(inner).rstrip("/")):
        if other != path and RECORD in store.get(other):
            return store
    return store.get(path)


def _crc32(record: dict[str, Any], arrays: Iterable[np.ndarray]) -> int:
    """Returns a checksum of a record and of the values of arrays."""
    checksum = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
