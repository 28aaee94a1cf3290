"""The cases: the variables that are updated, or the model that is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]
# Groups of rows.
ALL = OURS, KERAS, PEERS, LIMIT = "ours", "Keras", "peers", "limit"


@dataclass(frozen=True)
class Case:
    """A set of variables to update, or a model to fit.

    Attributes:
        name: name for flags and files.
        title: title for tables and plots.
        shapes: shapes of the variables; empty if a model is fitted.
        indices: rows that the sparse gradient of the one variable touches; 0 if dense.
        model: "cnn", "transformer", "table" or "dense" to measure whole steps of
            `fit`, "noise" to measure GradientNoise beside such steps.
        fresh: groups of rows whose first step and memory are measured, each row in its
            own process.
        quick: whether this is the reduced case of a trial.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...] = ()
    indices: int = 0
    model: str = ""
    fresh: tuple[str, ...] = ()
    quick: bool = False

    @property
    def fit_steps(self) -> int:
        """The steps of the short epoch that is timed if a model is fitted.

        If GradientNoise is timed, the steps between two of its measurements.
        """
        if self.quick:
            return 2
        return 100 if self.model == "noise" else 5

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def largest(self) -> int:
        """The number of parameters of the largest variable."""
        return max((math.prod(shape) for shape in self.shapes), default=0)


def resnet50_shapes(divide: int = 1) -> tuple[Shape, ...]:
    """Returns the shapes of ResNet-50's variables, their widths divided."""
    shapes: list[Shape] = []

    def convolution(size: int, inputs: int, outputs: int) -> None:
        shapes.extend([(size, size, inputs, outputs), (outputs,)])

    def normalisation(width: int) -> None:
        shapes.extend([(width,), (width,)])

    inputs = 64 // divide
    convolution(7, 3, inputs)
    normalisation(inputs)
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        width //= divide
        for block in range(blocks):
            convolution(1, inputs, width)
            normalisation(width)
            convolution(3, width, width)
            normalisation(width)
            # Keras builds the two branches level by level.
            if block == 0:
                convolution(1, inputs, 4 * width)
            convolution(1, width, 4 * width)
            if block == 0:
                normalisation(4 * width)
            normalisation(4 * width)
            inputs = 4 * width
    shapes.extend([(inputs, 1000 // divide), (1000 // divide,)])
    return tuple(shapes)


def efficientnet_b0_shapes(divide: int = 1) -> tuple[Shape, ...]:
    """Returns the shapes of EfficientNet-B0's variables, their widths divided."""
    shapes: list[Shape] = []

    def convolution(shape: Shape, normalised: int) -> None:
        shapes.extend([shape, (normalised,), (normalised,)])

    inputs = 32 // divide
    convolution((3, 3, 3, inputs), inputs)
    for size, repeats, width, expansion in (
        (3, 1, 16, 1),
        (3, 2, 24, 6),
        (5, 2, 40, 6),
        (3, 3, 80, 6),
        (5, 3, 112, 6),
        (5, 4, 192, 6),
        (3, 1, 320, 6),
    ):
        for _ in range(repeats):
            inside = inputs * expansion
            if expansion > 1:
                convolution((1, 1, inputs, inside), inside)
            convolution((size, size, inside, 1), inside)
            squeezed = max(1, inputs // 4)
            shapes.extend([(1, 1, inside, squeezed), (squeezed,)])
            shapes.extend([(1, 1, squeezed, inside), (inside,)])
            inputs = width // divide
            convolution((1, 1, inside, inputs), inputs)
    last = 1280 // divide
    convolution((1, 1, inputs, last), last)
    shapes.extend([(last, 1000 // divide), (1000 // divide,)])
    return tuple(shapes)


def bert_base_shapes(divide: int = 1) -> tuple[Shape, ...]:
    """Returns the shapes of BERT-base, uncased, with its pooler, divided."""
    width, vocabulary, layers = 768 // divide, 30522 // divide, max(12 // divide, 1)

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    norm: list[Shape] = [(width,), (width,)]
    shapes: list[Shape] = [(vocabulary, width), (512, width), (2, width), *norm]
    for _ in range(layers):
        for _ in ("query", "key", "value", "output"):
            shapes += dense(width, width)
        shapes += norm
        shapes += dense(width, 4 * width) + dense(4 * width, width) + norm
    return (*shapes, *dense(width, width))


TINY_SHAPES: tuple[Shape, ...] = ((16, 16), (16,)) * 30


def all_cases(quick: bool = False) -> dict[str, Case]:
    """Returns the cases by name; `quick` reduces them to a trial of a few seconds."""
    matrix = (64, 64) if quick else (4096, 4096)
    table, indices = ((1000, 8), 16) if quick else ((1_000_000, 64), 1024)
    cases = (
        Case("matrices", f"2 x {matrix}", (matrix,) * 2, fresh=ALL),
        Case(
            "resnet50",
            "ResNet-50",
            resnet50_shapes(8 if quick else 1),
            fresh=(OURS, KERAS),
        ),
        Case(
            "efficientnet",
            "EfficientNet-B0, 69 shapes",
            efficientnet_b0_shapes(8 if quick else 1),
            fresh=(OURS, KERAS),
        ),
        Case("bert", "BERT-base", bert_base_shapes(12 if quick else 1)),
        Case("tiny", "60 tiny variables", TINY_SHAPES),
        Case("embedding", f"Embedding {table}, {indices} indices", (table,), indices),
        Case("cnn", "fit: a CNN", model="cnn"),
        Case("transformer", "fit: a transformer", model="transformer"),
        Case("table", "fit: a large table", model="table"),
        Case("dense", "fit: large dense layers", model="dense"),
        Case("noise", "GradientNoise, the CNN", model="noise"),
    )
    return {case.name: Case(**{**vars(case), "quick": quick}) for case in cases}


SCALING = "scaling-"


def scaling_case(parameters: int) -> Case:
    """Returns the case of one variable with this number of parameters."""
    return Case(f"{SCALING}{parameters}", f"{parameters:.0e}", ((parameters,),))


def scaling_sizes(quick: bool = False) -> list[int]:
    """Returns sizes from 1e4 to 3e8, half a decade apart; `quick`: two small ones."""
    decades = range(3, 4) if quick else range(4, 9)
    return [digit * 10**decade for decade in decades for digit in (1, 3)]


def case_named(name: str, quick: bool) -> Case:
    """Returns the case of a name from `all_cases` or `scaling_case`."""
    if name.startswith(SCALING):
        return scaling_case(int(name.removeprefix(SCALING)))
    return all_cases(quick)[name]
