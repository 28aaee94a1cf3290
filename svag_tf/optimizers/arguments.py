"""Checks the optimizers' arguments, and says what to write instead of unknown ones."""

import difflib
import functools
import inspect
import numbers
from collections.abc import Iterator

import keras
import numpy as np

STATE_DTYPES = ("float16", "bfloat16", "float32", "float64")

KERAS_ARGUMENTS = """\
state_dtype: Dtype of the slots: `"float16"`, `"bfloat16"`, `"float32"`,
            `"float64"`, or `None` for float32 with float16 and bfloat16 variables
            and the variable's own dtype otherwise. Slots are updated in the widest
            of float32, the variable's and the slots' dtype, then stored, and the
            step is computed from the stored values in that dtype. Defaults to `None`.
        jit_compile: `"auto"`, `"native"`, `True` or `False`: how the update is compiled
            and made in place, on the TensorFlow backend (see `svag_tf.kernels`).
            `True`: by XLA. `"native"`: by the build that `python -m svag_tf.native`
            makes for CPUs, with the same bits; an error if that cannot make an
            update. `"auto"`: the native build where there is one and it can, otherwise
            XLA wherever it supports the variable's device. `False` runs the same rule
            one operation at a time. `model.compile` decides whether the training step
            around it is compiled. Without effect on other backends. Defaults to
            `"auto"`.
        sparse_updates: `"exact"` or `"lazy"`: the effect of a sparse gradient, a
            `tf.IndexedSlices`, as an embedding has on the TensorFlow backend.
            `"exact"`: the same as the dense gradient that it stands for, which is 0 in
            the other rows: their averages decay and they keep moving. `"lazy"`: only
            the rows that it touches are read and written, at a cost that does not grow
            with the table. Each row then counts its own updates, so that its bias
            correction and rho are right. That is a different algorithm: a row's
            averages run over the batches in which it occurs, not over all. Dense
            gradients update all rows. Ignored where gradients are made dense: on other
            backends, and with clipping, gradient accumulation or `loss_scale_factor`.
            Defaults to `"exact"`.
        weight_decay: Float >= 0 or `None`. Decoupled weight decay: before the
            update, theta <- theta - learning_rate * weight_decay * theta. Defaults
            to `None`.
        clipnorm: Float >= 0 or `None`. Each variable's gradient is scaled down to
            this Euclidean norm. Defaults to `None`.
        clipvalue: Float >= 0 or `None`. Each element of the gradient is clipped to
            [-clipvalue, clipvalue]. Defaults to `None`.
        global_clipnorm: Float >= 0 or `None`. All gradients together are scaled
            down to this Euclidean norm. At most one of the three clippings can be
            set. Defaults to `None`.
        use_ema: Whether to keep an exponential moving average of the weights.
            Defaults to `False`.
        ema_momentum: Float in [0, 1]. Its decay. Defaults to `0.99`.
        ema_overwrite_frequency: Integer >= 1 or `None`. The weights are overwritten
            by their average every so many updates; with `None` only by
            `finalize_variable_values()`, which `fit` calls at its end. Defaults to
            `None`.
        loss_scale_factor: Float or `None`. The loss is multiplied, and the gradient
            divided, by this constant. Defaults to `None`.
        gradient_accumulation_steps: Integer >= 2 or `None`. One update is made from
            the mean gradient of so many steps; beta powers count updates, learning
            rate schedules count steps. Defaults to `None`.
        name: Name of the optimizer. Defaults to `None`: the class's name."""

_ONE_BETA = "one beta serves both averages, which makes the estimated noise unbiased"
_VARIABLES = (
    "A Keras optimizer gets its variables from model.compile(optimizer), "
    "optimizer.build(variables) or optimizer.apply(gradients, variables)."
)
# What to write instead of the arguments that other optimizers have. "{}" stands for the
# value that was given; names are in lower case and without underscores.
_INSTEAD = {
    **dict.fromkeys(("lr", "alpha", "stepsize"), "Write learning_rate={}."),
    **dict.fromkeys(("beta1", "b1", "betas"), f"Write beta={{}}: {_ONE_BETA}."),
    **dict.fromkeys(("beta2", "b2"), f"Leave it out: {_ONE_BETA}."),
    "momentum": "Write beta={}. Gradients are averaged, not summed: what SGD does with "
    "a learning rate, MSGD does with that divided by 1 - beta.",
    "rho": "Write beta={}. Our rho, the variance of m over that of g, follows from it.",
    **dict.fromkeys(
        ("epsilon", "eps"), "Leave it out: no method here can divide by 0."
    ),
    "decay": "Write weight_decay={} if the weights should decay. If the learning rate "
    "should, give learning_rate a schedule of keras.optimizers.schedules.",
    **dict.fromkeys(
        ("params", "parameters", "variables", "varlist", "model"),
        f"Leave it out. {_VARIABLES}",
    ),
    **dict.fromkeys(
        ("nesterov", "amsgrad", "centered", "dampening"),
        "Leave it out: no method here has this variant.",
    ),
    **dict.fromkeys(
        ("maximize", "foreach", "fused", "capturable", "differentiable", "uselocking"),
        "Leave it out: no Keras optimizer has it.",
    ),
    "dtype": "Write state_dtype={}.",
}


def explained(init):
    """Wraps an `__init__` so that its errors say what to write instead.

    Python's own error only names the unknown argument.
    """
    parameters = inspect.signature(init).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return init  # What it passes on is checked there.

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        unknown = {n: v for n, v in kwargs.items() if n not in parameters}
        if unknown:
            raise _unknown(type(self), unknown, *args[:1])
        init(self, *args, **kwargs)

    return wrapped


def _unknown(cls, unknown, learning_rate=None):
    """Returns the error for arguments, a dict, that a class does not have."""
    sentences = [
        f"{cls.__name__} has no argument `{name}`. {_instead(cls, name, value)}"
        for name, value in unknown.items()
    ]
    if _holds_variables(learning_rate):
        sentences.append(_VARIABLES)
    return TypeError(" ".join(sentences))


def _instead(cls, name, value):
    """Says what to write instead of an argument that the class does not have."""
    known = {_plain(n): n for n in names(cls)}
    if _plain(name) in _INSTEAD:
        if isinstance(value, tuple | list) and value:  # The first of two betas.
            value = value[0]
        return _INSTEAD[_plain(name)].format(_shown(value))
    if owners := _owners(name):
        return f"{' and '.join(owners)} {'have' if owners[1:] else 'has'} one."
    for likely in difflib.get_close_matches(_plain(name), known, 1):
        return f"Did you mean {known[likely]}={_shown(value)}?"
    return f"Its arguments are {', '.join(known.values())}."


def _owners(name):
    """Returns the names of the methods that have this argument of their own."""
    from svag_tf import optimizers  # Incomplete when this module is imported.

    classes = [getattr(optimizers, cls) for cls in optimizers.__all__]
    return [cls.__name__ for cls in classes if name in cls.own_arguments()]


def _plain(name):
    return name.lower().replace("_", "")


def names(cls):
    """Returns the names of a class's arguments, including those it passes on."""
    found: dict[str, None] = {}
    for owner in cls.__mro__:
        if "__init__" in vars(owner):
            own = list(inspect.signature(owner.__init__).parameters.values())[1:]
            named = (p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
            found |= dict.fromkeys(p.name for p in named)
            if all(p.kind is not p.VAR_KEYWORD for p in own):
                break
    return tuple(found)


def _shown(value):
    """Returns a value as a user would write it, or dots if it is not a simple one."""
    plain = isinstance(value, str | numbers.Number | type(None))
    return repr(value) if plain else "..."


def check_number(name, value, interval):
    """Returns `value` as a float if it is in an interval like "(0, 1]", or raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"Argument `{name}` must be a number in {interval}. "
            f"Received: {name}={value!r} of type {type(value).__name__}"
        )
    number = float(value)
    low, high = map(float, interval[1:-1].split(","))
    above = number > low or (number == low and interval[0] == "[")
    below = number < high or (number == high and interval[-1] == "]")
    if not (above and below):
        raise ValueError(
            f"Argument `{name}` must be a number in {interval}. "
            f"Received: {name}={value!r}"
        )
    return number


def check_sizes(**arguments):
    """Raises if one of the arguments is neither `None` nor a finite number >= 0."""
    for name, value in arguments.items():
        if value is not None:
            check_number(name, value, "[0, inf)")


def check_beta(value):
    """Returns `value` as a float, if it is the decay of an average, or raises."""
    if isinstance(value, tuple | list):
        raise TypeError(
            "Argument `beta` must be one number in [0, 1): "
            f"{_ONE_BETA}. Received: beta={value!r}"
        )
    return check_number("beta", value, "[0, 1)")


def check_learning_rate(value):
    """Returns a number as a float, a schedule or callable unchanged, or raises."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    if _holds_variables(value):
        raise TypeError(
            "Argument `learning_rate`, the first one, must be a number in [0, inf). "
            f"{_VARIABLES} Received: learning_rate=<{type(value).__name__}>"
        )
    if callable(value) and not isinstance(value, type) and _needs_nothing(value):
        return value
    try:
        return check_number("learning_rate", value, "[0, inf)")
    except TypeError as error:
        raise TypeError(
            f"{error}. A `keras.optimizers.schedules.LearningRateSchedule` or a "
            "callable without arguments is accepted as well."
        ) from None


def _holds_variables(value):
    """Returns whether a value is a model, a variable, or PyTorch's `params`."""
    if isinstance(value, list | tuple | set):
        return any(_holds_variables(one) for one in value)
    if isinstance(value, dict):
        return "params" in value
    if hasattr(value, "trainable_variables") or hasattr(value, "parameters"):
        return True
    is_tensor = hasattr(value, "dtype") and not isinstance(
        value, np.ndarray | np.generic
    )
    return isinstance(value, Iterator) or (is_tensor and len(value.shape) > 0)


def _needs_nothing(function):
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # It has no signature.
        return True
    return True


def check_state_dtype(value):
    if value is None:
        return None
    try:
        dtype = keras.backend.standardize_dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype in STATE_DTYPES:
        return dtype
    error = ValueError if isinstance(value, str) or dtype else TypeError
    raise error(
        f"Argument `state_dtype` must be None or one of {', '.join(STATE_DTYPES)}. "
        f"Received: state_dtype={value!r}"
    )


def check_choice(name, value, choices):
    """Returns `value` if it is one of `choices`, strings and bools, or raises."""
    if isinstance(value, str | bool) and value in choices:
        return value
    error = ValueError if isinstance(value, str) else TypeError
    raise error(
        f"Argument `{name}` must be one of {', '.join(map(repr, choices))}. "
        f"Received: {name}={value!r} of type {type(value).__name__}"
    )
