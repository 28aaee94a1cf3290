"""The rows: the methods to measure, and the process in which each one runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

from svag_tf.experiments.benchmark.cases import KERAS, LIMIT, OURS, PEERS, Case
from svag_tf.experiments.optimizers import METHODS
from svag_tf.noise.callback import PRESETS

SPARSE = ("sparse",)
UPDATES, MODELS = ("update", *SPARSE), ("cnn", "transformer")
# Models that most rows would take too long for.
LARGE = ("table", "dense")
# Packages that may be missing: (name, oldest version).
Needs = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        name: name for flags and files.
        title: title for tables and plots.
        group: `OURS`, `KERAS`, `PEERS` or `LIMIT`.
        host: the kind of process: "tensorflow", "jax", "torch" or "c".
        state: bytes of its state per parameter, all read and written.
        needs: packages that may be missing.
        kinds: cases that it has: "update", "sparse" (an embedding), or a model.
        sparse: "exact", "lazy" (touches only the rows of the batch) or "dense" (is
            given a dense gradient).
        fresh: how many new processes measure its first step and its memory.
    """

    name: str
    title: str
    group: str
    host: str
    state: int
    needs: Needs = ()
    kinds: tuple[str, ...] = (*UPDATES, *MODELS)
    sparse: str = "exact"
    fresh: int = 0

    def serves(self, case: Case) -> bool:
        """Returns whether the row has this case."""
        kind = case.model or ("sparse" if case.indices else "update")
        return kind in self.kinds

    def processes(self, case: Case) -> int:
        """Returns how many processes measure its first step and memory in a case."""
        return self.fresh if self.group in case.fresh else 0

    def moved_bytes(self, case: Case) -> int | None:
        """Returns the bytes that any implementation of a step must read and write.

        The variable and the state are read and written, and the gradient is read. None
        if a model is fitted.
        """
        if case.model:
            return None
        if self.name == "copy":
            return 8 * case.parameters
        touched = case.parameters
        if case.indices:
            touched = case.indices * case.shapes[0][1]
        # Without averages, a row without a gradient does not change.
        few = self.sparse == "lazy" or (self.sparse == "exact" and self.state == 0)
        updated = touched if few else case.parameters
        gradient = case.parameters if self.sparse == "dense" else touched
        return updated * (8 + 2 * self.state) + 4 * gradient

    def missing(self) -> str | None:
        """Returns a package that this row needs and that is not installed, or None."""
        for package, oldest in self.needs:
            wanted = package + (f" {'.'.join(map(str, oldest))}" if oldest else "")
            if importlib.util.find_spec(package) is None:
                return f"{wanted} is not installed"
            version = importlib.metadata.version(package)
            if tuple(int(part) for part in version.split(".")[: len(oldest)]) < oldest:
                return f"{wanted} or later is not installed, but {version}"
        return None


def _bytes(optimizer: Any) -> int:
    return 4 * len(optimizer.slots)


_METHODS = [
    (name, method.title, _bytes(method.create))
    for name, method in METHODS.items()
    if method.is_ours
]
_KERAS = (
    ("keras-adam", "Keras Adam", 8),
    ("keras-sgd", "Keras SGD, momentum", 4),
    ("keras-lion", "Keras Lion", 4),
)
_JAX: Needs = (("jax", ()),)
_OPTAX: Needs = (*_JAX, ("optax", ()))
_TORCH: Needs = (("torch", ()),)
_PYTORCH_OPTIMIZER: Needs = (*_TORCH, ("pytorch_optimizer", (4, 1)))


def _peer(name: str, title: str, host: str, needs: Needs) -> Row:
    return Row(name, title, PEERS, host, 8, needs, UPDATES, "dense", fresh=1)


def _optax_rows() -> list[Row]:
    return [
        _peer("optax-adam", "optax Adam", "jax", _OPTAX),
        _peer("optax-msvag", "M-SVAG in optax's style", "jax", _OPTAX),
    ]


def _tensorflow_rows() -> list[Row]:
    """Returns the rows of the run on the TensorFlow backend: all on the CPU."""

    def ours(name: str, title: str, state: int, **fields: Any) -> Row:
        return Row(name, title, OURS, "tensorflow", state, **fields)

    everywhere = (*UPDATES, *MODELS, *LARGE)
    own: dict[str, Any] = {"msvag": {"kinds": everywhere, "fresh": 3}}
    rows = [ours(*method, **own.get(method[0], {})) for method in _METHODS]
    rows += [
        ours("msvag-xla", "M-SVAG, jit_compile=True", 8, fresh=1,
             kinds=("update", *MODELS, *LARGE)),
        ours("msvas-xla", "M-SVAS, jit_compile=True", 8, kinds=("update",)),
        ours("msvag-bfloat16", "M-SVAG, bfloat16 state", 4, kinds=UPDATES, fresh=1),
        ours("msvag-portable", "M-SVAG, jit_compile=False", 8, kinds=UPDATES, fresh=1),
        ours("msvag-compiled", "M-SVAG, compiled step", 8, kinds=(*MODELS, *LARGE)),
        ours("msvag-dense", "M-SVAG, dense gradient", 8, kinds=SPARSE, sparse="dense"),
        ours("msvag-lazy", "M-SVAG, lazy", 8, kinds=(*SPARSE, "transformer", "table"),
             sparse="lazy"),
    ]  # fmt: skip
    for name, title in (
        ("noise-fit", "M-SVAG, a step of fit"),
        *((f"noise-{preset}", f"GradientNoise, {preset}: in 100 steps")
          for preset in PRESETS),
    ):  # fmt: skip
        rows.append(ours(name, title, 8, kinds=("noise",)))
    for name, title, state in _KERAS:
        adam = name == "keras-adam"
        kinds = everywhere if adam else (*UPDATES, *MODELS)
        rows += [
            Row(name, title, KERAS, "tensorflow", state, kinds=kinds,
                fresh=3 if adam else 1),
            Row(f"{name}-compiled", f"{title}, compiled step", KERAS, "tensorflow",
                state, kinds=kinds, fresh=int(adam)),
        ]  # fmt: skip
    loop = "C loop, M-SVAG's reads and writes"
    return [
        *rows,
        Row("plain", "M-SVAG in plain keras.ops", PEERS, "tensorflow", 8, fresh=1),
        _peer("torch-adamw-fused", "torch AdamW, fused", "torch", _TORCH),
        _peer("torch-adamw-foreach", "torch AdamW, foreach", "torch", _TORCH),
        _peer("torch-msvag", "pytorch_optimizer M-SVAG, foreach", "torch",
              _PYTORCH_OPTIMIZER),
        *_optax_rows(),
        Row("msvag-jax", "M-SVAG on the JAX backend", OURS, "jax", 8, _JAX, UPDATES,
            "dense", fresh=1),
        Row("limit", loop, LIMIT, "c", 8, kinds=UPDATES),
        Row("copy", "Memory copy", LIMIT, "c", 0, kinds=UPDATES),
    ]  # fmt: skip


def _jax_rows() -> list[Row]:
    """Returns the rows of the run on Keras' JAX backend: on a GPU, if JAX has one."""

    def row(name: str, title: str, group: str, state: int, **fields: Any) -> Row:
        return Row(name, title, group, "jax", state, _JAX, sparse="dense", **fields)

    return [
        *(row(*method[:2], OURS, method[2], fresh=int(method[0] == "msvag"))
          for method in _METHODS),
        row("msvag-bfloat16", "M-SVAG, bfloat16 state", OURS, 4, kinds=UPDATES),
        *(row(name, title, KERAS, state, fresh=1) for name, title, state in _KERAS),
        row("plain", "M-SVAG in plain keras.ops", PEERS, 8, fresh=1),
        *_optax_rows(),
        row("limit", "x + 1 in place, as many bytes as M-SVAG", LIMIT, 8,
            kinds=UPDATES),
    ]  # fmt: skip


def all_rows(backend: str) -> dict[str, Row]:
    """Returns the rows of a backend, "tensorflow" or "jax", by name."""
    rows = _jax_rows() if backend == "jax" else _tensorflow_rows()
    return {row.name: row for row in rows}
