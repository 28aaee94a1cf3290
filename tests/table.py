"""The comparison that the whole suite rests on: runs of optimizers against the oracle.

`gradients` are many kinds of gradient side by side, a kind a row. `run` feeds them to
an optimizer, through the public API alone, and records what it did to its variables
and slots; `compare` asserts that the oracle does the same. Nothing here imports a
backend before a run asks for one, so that the script of the other backends uses it too.

Tolerances. An update u(g, m, v) is held to

    |error of u| <= RTOL |u| + |u(g, m +- delta, v) - u(g, m, v)|,
    delta = ROUNDING eps mean|g|        (eps of float32: 1.2e-7)

The second term is there because gradients of both signs cancel in m, and m keeps the
round-off of what cancelled: delta, a few units in the last place of the same average
taken of |g|. It is what the method itself makes of that error, negligible unless
|m| << mean|g|; and where |m| < delta, where nothing can know the sign of m, it lets
the sign methods step either way.
"""

import functools

import ml_dtypes
import numpy as np
from oracle import METHODS, Oracle

BETAS = (0.0, 0.5, 0.9, 0.999)
DTYPES = ("float16", "bfloat16", "float32", "float64")
MODES = ("eager", "graph", "xla")
VARIANTS = tuple(METHODS)
SLOTS = ("m_tilde", "v_tilde")

LEARNING_RATE = 0.25  # Exact in every dtype.
STEPS = 200
COLUMNS = 6
KINDS = (
    "noisy",
    "noise only",
    "nearly constant",
    "constant",
    "alternating",
    "drifting",
    "zero",
    "zero at first",
    "rare",
    "tiny",
    "huge",
)
SHAPE = (len(KINDS), COLUMNS)
TOUCHED = 7  # Rows that a sparse gradient touches in a step, each of them twice.

# As far out as squares still have all their digits in the dtype of the slots.
TINY = {"float16": 1e-3, "bfloat16": 1e-12, "float32": 1e-12, "float64": 1e-100}
HUGE = {"float16": 3e3, "bfloat16": 1e15, "float32": 1e15, "float64": 1e100}

# Some three times what is seen; in float64 the oracle itself rounds no less.
RTOL = {"float32": 2e-6, "float64": 1e-13}
ROUNDING = {"float32": 8, "float64": 32}


def numpy_dtype(dtype):
    return np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)


def state_dtype(dtype):
    """The dtype of slots and computation by default."""
    return "float64" if dtype == "float64" else "float32"


@functools.cache
def gradients(dtype, sparse=False, steps=STEPS):
    """(steps, rows, columns) values, and the (steps, rows) that they belong to.

    The gradient of a variable is the sum of the values of each row. Dense gradients
    have every row once. Sparse ones touch a few rows at each step, in random order,
    each twice.
    """
    rng = np.random.default_rng(0)
    size = (STEPS, COLUMNS)
    t = np.arange(STEPS)[:, None]
    amplitudes = np.linspace(0.1, 3, COLUMNS)
    noise = {kind: rng.normal(size=size) for kind in KINDS}
    kinds = {
        "noisy": 0.3 + noise["noisy"],
        "noise only": noise["noise only"],
        "nearly constant": 1 + 1e-3 * noise["nearly constant"],
        "constant": np.ones((STEPS, 1)) * amplitudes,
        "alternating": np.where(t % 2, 1, -1) * amplitudes,
        "drifting": np.sin(t / 20) + 0.1 * noise["drifting"],
        "zero": np.zeros(size),
        "zero at first": np.where(t < 20, 0, 0.5 + noise["zero at first"]),
        "rare": np.where((t + 3 * np.arange(COLUMNS)) % 17 == 0, noise["rare"], 0),
        "tiny": TINY[dtype] * (1 + noise["tiny"]),
        "huge": HUGE[dtype] * (1 + noise["huge"]),
    }
    values = np.stack([kinds[kind] for kind in KINDS], axis=1)
    rows = np.tile(np.arange(len(KINDS)), (STEPS, 1))
    if sparse:
        rows = np.stack([rng.permutation(len(KINDS))[:TOUCHED] for _ in range(STEPS)])
        rows = np.concatenate([rows, rows[:, ::-1]], axis=1)
        values = np.take_along_axis(values / 2, rows[:, :, None], axis=1)
    return values[:steps].astype(numpy_dtype(dtype)), rows[:steps]


@functools.cache
def start(dtype):
    """theta before every step: 0, where an update is seen best, and other values."""
    theta = np.random.default_rng(1).uniform(0.5, 2, SHAPE) * [0, 1, 0, -1, 0, 1]
    return theta.astype(numpy_dtype(dtype))


def make(variant, beta=0.9, learning_rate=LEARNING_RATE, **kwargs):
    """Returns the optimizer of a variant such as "msvag" or "svas_adam"."""
    import svag_tf

    method = METHODS[variant]
    arguments = {**method.arguments, **kwargs}
    return getattr(svag_tf, method.cls)(
        learning_rate=learning_rate, beta=beta, **arguments
    )


def classes():
    """All optimizer classes of the package."""
    from svag_tf import optimizers

    return [getattr(optimizers, name) for name in optimizers.__all__]


def to_numpy(variable):
    """A variable's value, in float64."""
    return _float64(variable.value)


def run(
    variant,
    beta,
    mode="eager",
    cases=(("float32", False),),
    steps=STEPS,
    **arguments,
):
    """Runs one optimizer on a variable for each case, a (dtype, sparse) pair.

    Args:
        mode: "eager", "graph" (a `tf.function`) or "xla" (a compiled one).
        **arguments: More arguments of the optimizer.

    Returns:
        For each case a dict of arrays (steps, *SHAPE), float64: "theta" after each
        step, "m_tilde", "v_tilde" where the method has them.
    """
    import keras

    optimizer = make(variant, beta, **arguments)
    variables = [
        keras.Variable(start(dtype), dtype=dtype, name=f"v{i}")
        for i, (dtype, _) in enumerate(cases)
    ]
    optimizer.build(variables)
    step = _step(optimizer, variables, cases, mode)
    inputs = [gradients(dtype, sparse, steps) for dtype, sparse in cases]
    records = [[] for _ in cases]
    for t in range(steps):
        state = step(
            [
                (_tensor(values[t], dtype), rows[t].astype("int32"))
                if sparse
                else _tensor(values[t], dtype)
                for (dtype, sparse), (values, rows) in zip(cases, inputs)
            ]
        )
        for record, arrays in zip(records, state):
            record.append([_float64(array) for array in arrays])
    names = ["theta", *(n for n in SLOTS if getattr(optimizer, n))]
    return [
        {name: np.array(a) for name, a in zip(names, zip(*record))}
        for record in records
    ]


def _tensor(array, dtype):
    import keras

    return keras.ops.convert_to_tensor(array, dtype=dtype)


def _float64(tensor):
    import keras

    return np.array(keras.ops.convert_to_numpy(tensor), np.float64)


def _step(optimizer, variables, cases, mode):
    """Function of the gradients: steps from `start`, returns the new state."""
    import keras

    slots = [getattr(optimizer, name) for name in SLOTS]
    states = [*zip(variables, *(s for s in slots if s))]

    def step(grads):
        for (dtype, _), variable in zip(cases, variables):
            variable.assign(start(dtype))
        optimizer.apply(
            [_indexed_slices(*g) if isinstance(g, tuple) else g for g in grads],
            variables,
        )
        return [[keras.ops.convert_to_tensor(v) for v in state] for state in states]

    if mode == "eager":
        return step
    import tensorflow as tf

    return tf.function(step, jit_compile=mode == "xla", autograph=False)


def _indexed_slices(values, rows):
    import tensorflow as tf

    return tf.IndexedSlices(values, rows, SHAPE)


@functools.cache
def expected(variant, beta, dtype, sparse=False, steps=STEPS):
    """What the oracle does with the same gradients: update, its tolerance, slots."""
    values, rows = gradients(dtype, sparse, steps)
    oracle = Oracle(variant, LEARNING_RATE, beta, SHAPE)
    size = np.zeros(SHAPE)  # Average of |g|.
    precision = state_dtype(dtype)
    rounding = ROUNDING[precision] * np.finfo(precision).eps
    out = {
        name: []
        for name in ("update", "tolerance", "m_tilde", "v_tilde", "m_tilde_tolerance")
    }
    for t in range(steps):
        g = np.zeros(SHAPE)
        np.add.at(g, rows[t], values[t].astype(np.float64))
        update = oracle.update(g)
        size = beta * size + (1 - beta) * np.abs(g)
        delta = rounding * size / (1 - beta ** (t + 1))
        moved = [
            np.abs(LEARNING_RATE * oracle.direction(g, oracle.m + d, oracle.v) - update)
            for d in (delta, -delta)
        ]
        out["update"].append(update)
        out["tolerance"].append(RTOL[precision] * np.abs(update) + np.maximum(*moved))
        out["m_tilde"].append(oracle.m_tilde)
        out["v_tilde"].append(oracle.v_tilde)
        out["m_tilde_tolerance"].append(rounding * size)
    return {name: np.array(a) for name, a in out.items()}


def compare(record, variant, beta, dtype="float32", sparse=False):
    """Asserts that a record of `run` is what the oracle does.

    theta may be anything that updates within tolerance round to: in float16 and
    bfloat16, whose own precision is coarser, rounding is thereby checked to the last
    bit and the update by all the elements that start at 0.
    """
    steps = len(record["theta"])
    want = expected(variant, beta, dtype, sparse, steps)
    for name in SLOTS:
        if name in record:
            tolerance = want.get(
                f"{name}_tolerance", RTOL[state_dtype(dtype)] * want["v_tilde"]
            )
            _assert_between(
                record[name], want[name] - tolerance, want[name] + tolerance, name
            )
    theta = start(dtype).astype(np.float64) - want["update"]
    tolerance = want["tolerance"]
    # theta is rounded once more on the way: in half precision first in float32, in
    # float64 by the oracle.
    rounded_in = {"float32": None, "float64": "float64"}.get(dtype, "float32")
    if rounded_in:
        tolerance = tolerance + np.finfo(rounded_in).eps * np.abs(theta)
    low, high = (
        (theta + d).astype(numpy_dtype(dtype)).astype(np.float64)
        for d in (-tolerance, tolerance)
    )
    _assert_between(record["theta"], low, high, "theta")


def _assert_between(actual, low, high, name):
    """Fails with the worst element; NaN is never within bounds."""
    wrong = ~((low <= actual) & (actual <= high))
    if not wrong.any():
        return
    t, row, column = (int(i[0]) for i in np.nonzero(wrong))
    raise AssertionError(
        f"{name} is wrong in {wrong.sum()} of {wrong.size} places, first at step "
        f"{t + 1}, column {column} of {KINDS[row]!r}: {actual[t, row, column]!r}, not "
        f"between {low[t, row, column]!r} and {high[t, row, column]!r}"
    )


def check(variant, beta, mode="eager", dtype="float32", sparse=False, steps=STEPS):
    """One row of the table, from run to comparison."""
    (record,) = run(variant, beta, mode, ((dtype, sparse),), steps)
    compare(record, variant, beta, dtype, sparse)
