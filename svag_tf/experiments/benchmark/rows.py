"""The rows: the methods that are measured, and in which process each one runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from dataclasses import dataclass

import svag_tf
from svag_tf.experiments.benchmark.cases import Case

OURS, KERAS, PEERS, LIMIT = "ours", "Keras", "peers", "limit"


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        name: for flags and files.
        title: for tables and pictures.
        group: `OURS`, `KERAS`, `PEERS` or `LIMIT`.
        host: the kind of process: "tensorflow", "jax", "torch" or "c".
        state: bytes of its state for each parameter, all read and written.
        needs: packages beside those of this project: (name, oldest version).
        kinds: cases that it has: "update", "sparse" (an embedding), "fit".
        sparse: "exact", "lazy" (touches only the rows of the batch) or "dense" (is
            given a dense gradient).
        fresh: how many new processes measure its first step and its memory.
    """

    name: str
    title: str
    group: str
    host: str
    state: int
    needs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    kinds: tuple[str, ...] = ("update", "sparse", "fit")
    sparse: str = "exact"
    fresh: int = 0

    def serves(self, case: Case) -> bool:
        """Whether the row has this case."""
        kind = "fit" if case.model else "sparse" if case.indices else "update"
        return kind in self.kinds

    def moved_bytes(self, case: Case) -> int | None:
        """Bytes that a step must read and write, however it is done.

        The variable is read and written, so is the state, and the gradient is read.
        None where a model is fitted.
        """
        if case.model:
            return None
        if self.name == "copy":
            return 8 * case.parameters
        touched = case.parameters
        if case.indices:
            touched = case.indices * case.shapes[0][1]
        # Without averages a row that has no gradient stays as it is.
        few = self.sparse == "lazy" or (self.sparse == "exact" and self.state == 0)
        updated = touched if few else case.parameters
        gradient = case.parameters if self.sparse == "dense" else touched
        return updated * (8 + 2 * self.state) + 4 * gradient

    def missing(self) -> str | None:
        """What is not installed that this row needs, or None."""
        for package, oldest in self.needs:
            wanted = package + (f" {'.'.join(map(str, oldest))}" if oldest else "")
            if importlib.util.find_spec(package) is None:
                return f"{wanted} is not installed"
            version = importlib.metadata.version(package)
            if tuple(int(part) for part in version.split(".")[: len(oldest)]) < oldest:
                return f"{wanted} or later is not installed, but {version}"
        return None


def _ours(host: str, sparse: str) -> list[Row]:
    methods = (
        ("msvag", "M-SVAG", 8),
        ("svag", "SVAG", 8),
        ("msvas", "M-SVAS", 8),
        ("svas", "SVAS", 8),
        ("msgd", "M-SGD", 4),
        ("mssd", "M-SSD", 4),
        ("ssd", "SSD", 0),
    )
    rows = [
        Row(name, title, OURS, host, state, sparse=sparse, fresh=3 * (name == "msvag"))
        for name, title, state in methods
    ]
    bfloat16 = "M-SVAG, bfloat16 state"
    rows.append(Row("msvag-bfloat16", bfloat16, OURS, host, 4, sparse=sparse, fresh=1))
    return rows


def _optax() -> list[Row]:
    needs = (("jax", ()), ("optax", ()))
    update = ("update", "sparse")
    return [
        Row("optax-adam", "optax Adam", PEERS, "jax", 8, needs, update, "dense", 1),
        Row("optax-msvag", "M-SVAG in optax's style", PEERS, "jax", 8, needs, update,
            "dense", 1),
    ]  # fmt: skip


def tensorflow_rows() -> list[Row]:
    """The rows of the run on the TensorFlow backend: all on the CPU."""
    tf, update, sparse = "tensorflow", ("update", "sparse"), ("sparse",)
    torch = (("torch", ()),)
    rows = [
        *_ours(tf, "exact"),
        Row("msvag-portable", "M-SVAG, jit_compile=False", OURS, tf, 8, fresh=1),
        Row("msvag-compiled", "M-SVAG, compiled step", OURS, tf, 8, kinds=("fit",)),
        Row("msvag-dense", "M-SVAG, dense gradient", OURS, tf, 8, (), sparse, "dense"),
    ]
    if "sparse_updates" in inspect.signature(svag_tf.MSVAG).parameters:
        rows.append(
            Row("msvag-lazy", "M-SVAG, lazy", OURS, tf, 8, (), ("sparse", "fit"),
                "lazy")
        )  # fmt: skip
    for name, title, state in (
        ("keras-adam", "Keras Adam", 8),
        ("keras-sgd", "Keras SGD, momentum", 4),
        ("keras-lion", "Keras Lion", 4),
    ):
        rows.append(
            Row(name, title, KERAS, tf, state, fresh=3 if "adam" in name else 1)
        )
        compiled = f"{title}, compiled step"
        rows.append(
            Row(
                f"{name}-compiled",
                compiled,
                KERAS,
                tf,
                state,
                fresh=int("adam" in name),
            )
        )
    return [
        *rows,
        Row("plain", "M-SVAG in plain keras.ops", PEERS, tf, 8, fresh=1),
        Row("torch-adamw-fused", "torch AdamW, fused", PEERS, "torch", 8, torch,
            update, "dense", 1),
        Row("torch-adamw-foreach", "torch AdamW, foreach", PEERS, "torch", 8, torch,
            update, "dense", 1),
        Row("torch-msvag", "pytorch_optimizer M-SVAG, foreach", PEERS, "torch", 8,
            (*torch, ("pytorch_optimizer", (4, 1))), update, "dense", 1),
        *_optax(),
        Row("msvag-jax", "M-SVAG on the JAX backend", OURS, "jax", 8, (("jax", ()),),
            update, "dense", 1),
        Row("limit", "C loop, M-SVAG's reads and writes", LIMIT, "c", 8, kinds=update),
        Row("copy", "Memory copy", LIMIT, "c", 0, kinds=update),
    ]  # fmt: skip


def jax_rows() -> list[Row]:
    """The rows of the run on Keras' JAX backend: on a GPU, if JAX sees one."""
    return [
        *_ours("jax", "dense"),
        Row("keras-adam", "Keras Adam", KERAS, "jax", 8, sparse="dense", fresh=1),
        Row("keras-sgd", "Keras SGD, momentum", KERAS, "jax", 4, sparse="dense"),
        Row("keras-lion", "Keras Lion", KERAS, "jax", 4, sparse="dense"),
        Row("plain", "M-SVAG in plain keras.ops", PEERS, "jax", 8, sparse="dense"),
        *_optax(),
        Row("limit", "x + 1 in place, as many bytes as M-SVAG", LIMIT, "jax", 8,
            (), ("update", "sparse"), "dense"),
    ]  # fmt: skip


def all_rows(backend: str) -> dict[str, Row]:
    """The rows of a backend, "tensorflow" or "jax", by name."""
    rows = jax_rows() if backend == "jax" else tensorflow_rows()
    return {row.name: row for row in rows}
