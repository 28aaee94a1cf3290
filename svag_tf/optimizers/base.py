"""The base class of the optimizers: slots, counts and the order of an update."""

import math
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops

from svag_tf import internals, rules
from svag_tf.optimizers import arguments, update
from svag_tf.optimizers.checks import check_gradient, check_variable, densified
from svag_tf.optimizers.keras_base import KerasOptimizer
from svag_tf.optimizers.replicated import is_replicated, local

kernels: Any = None
replicas: Any = None
if keras.backend.backend() == "tensorflow":
    from svag_tf import kernels, replicas


def _unconverted(method):
    return kernels.unconverted(method) if kernels else method


def _flat_path(variable):
    """Returns a variable's path as part of a name."""
    path = getattr(variable, "path", variable.name)
    return path.replace("/", "_").replace(":", "_")


class MomentOptimizer(KerasOptimizer):
    """Base class of the optimizers, which step along averaged gradient moments.

    A subclass names its `slots` and gives its direction of descent; the base class
    keeps the slots

        m~ <- beta m~ + (1 - beta) g            v~ <- beta v~ + (1 - beta) g^2

    and makes the update

        theta <- theta - learning_rate * direction(g, m, v, factor).

    Attributes:
        slots: Names of the slots that the method needs, of "m_tilde" and "v_tilde".
        m_tilde: The m~ of every variable: a list of `keras.Variable` in the order of
            the variables that the optimizer was built on. Empty before `build`, and
            for methods without m~.
        v_tilde: The v~ of every variable, likewise.
        update_counts: The updates made to each variable, t of the last one: an integer
            `keras.Variable` of shape (number of variables,). `None` before `build`.
            `iterations`, which drives a learning rate schedule, is counted separately.
        row_update_counts: With `sparse_updates="lazy"`, the same for the rows of every
            variable: a list of variables of shape (rows,), `None` for vectors.
    """

    slots: tuple[str, ...] = ()
    # The slot from which the noise is estimated.
    second_slot = "v_tilde"
    # Whether the direction depends on the update count t.
    counts_updates = False
    # For methods that estimate the noise, which `GradientNoise` measures: the factor
    # that damps each element, a function of `rules.signal_and_noise`, and what it
    # damps: "gradient" for m, "sampled" for g, "sign" for the sign of either.
    gamma: Any = None
    damping: str | None = None
    m_tilde: list | tuple = ()
    v_tilde: list | tuple = ()
    update_counts: Any = None
    row_update_counts: list | tuple = ()
    # Whether it would take long to compile a kernel for every shape.
    _has_many_shapes = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.__doc__:
            cls.__doc__ = cls.__doc__.replace(
                "{{keras_arguments}}", arguments.KERAS_ARGUMENTS
            )
        if "__init__" in vars(cls):
            init = arguments.explained(cls.__init__)
            cls.__init__ = init  # type: ignore[method-assign]

    @arguments.explained
    def __init__(
        self,
        learning_rate=0.1,
        beta=0.9,
        state_dtype=None,
        jit_compile="auto",
        sparse_updates="exact",
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name=None,
    ):
        arguments.check_sizes(
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
        )
        learning_rate = arguments.check_learning_rate(learning_rate)
        beta = arguments.check_beta(beta)
        state_dtype = arguments.check_state_dtype(state_dtype)
        arguments.check_choice(
            "jit_compile", jit_compile, ("auto", "native", True, False)
        )
        arguments.check_choice("sparse_updates", sparse_updates, ("exact", "lazy"))
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.beta = beta
        self.state_dtype = state_dtype
        self.jit_compile = jit_compile
        self.sparse_updates = sparse_updates

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        # The optimizer's own kernels, which are freed with it. A rule may depend on
        # any attribute; the learning rate is one of its inputs.
        if kernels and name not in ("_own_kernels", "payload", "learning_rate"):
            self._own_kernels = kernels.Store()

    def build(self, variables):
        """Creates the slots, all zero.

        Args:
            variables: List of the model's trainable variables.

        Raises:
            ValueError: A variable is not of real floating-point numbers, or its shape
                is not known.
        """
        if self.built:
            return
        if replicas:
            replicas.check_strategy()
        variables = list(variables)
        for variable in variables:
            check_variable(variable)
        self._state.remember_variables(variables)
        with replicas.eager_variables() if replicas else nullcontext():
            self._create_variables(variables)

    def _create_variables(self, variables):
        super().build(variables)
        if kernels is not None:
            shapes = {tuple(variable.shape) for variable in variables}
            self._has_many_shapes = len(shapes) > kernels.MANY_SHAPES
        slots: dict[str, list] = {name: [] for name in self.slots}
        for variable in variables:
            for name, variables_of_slot in slots.items():
                variables_of_slot.append(self._new_slot(variable, name))
        for name, variables_of_slot in slots.items():
            setattr(self, name, variables_of_slot)
        self.update_counts = self._new_counts(len(variables), "update_counts")
        if self.use_ema:
            self.has_average = self._new_counts(len(variables), "has_average")
        if self.counts_rows:
            self.row_update_counts = [
                self._new_counts(v.shape[0], f"{_flat_path(v)}_row_update_counts")
                if len(v.shape) >= 2
                else None
                for v in variables
            ]

    @property
    def counts_rows(self):
        """Whether each row of a variable counts its own updates."""
        lazy = self.sparse_updates == "lazy" and kernels is not None
        return self.counts_updates and lazy

    def _new_counts(self, size, name):
        return self.add_variable(
            shape=(size,), dtype="int", aggregation="only_first_replica", name=name
        )

    def _new_slot(self, variable, name):
        if getattr(variable, "overwrite_with_gradient", False):
            return None  # As in Keras: such a variable takes no optimizer step.
        slot_dtype = update.slot_dtype(self, variable)
        if slot_dtype == keras.backend.standardize_dtype(variable.dtype):
            return self.add_variable_from_reference(variable, name=name)
        return self.add_variable(
            shape=variable.shape,
            dtype=slot_dtype,
            name=f"{_flat_path(variable)}_{name}",
            layout=internals.layout_of(variable),
        )

    @_unconverted
    def apply(self, grads, trainable_variables=None):
        """Makes one update.

        Args:
            grads: List of gradients, dense or `tf.IndexedSlices`; `None` leaves the
                variable, its slots and its update count as they are.
            trainable_variables: List of the variables that they belong to. Defaults
                to `None`: all those that the optimizer was built on.
        """
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        if not grads or (trainable_variables is None and not self.built):
            return super().apply(grads, trainable_variables)  # Nothing, or an error.
        variables = trainable_variables
        if variables is None:
            variables = internals.trained_variables(self)
        if len(grads) != len(variables):
            raise ValueError(
                "Arguments `grads` and `trainable_variables` must have the same "
                f"length. Received: {len(grads)} gradients, {len(variables)} variables"
            )
        for gradient, variable in zip(grads, variables):
            check_gradient(gradient, variable)
        if not self._takes_sparse_gradients():
            grads = [densified(g, v) for g, v in zip(grads, variables)]
        if is_replicated():
            grads = self.reduced(grads, variables)
        self.apply_reduced(grads, trainable_variables)

    def apply_reduced(self, grads, trainable_variables=None):
        """Makes one update from gradients that are the same on all replicas.

        Args:
            grads: List of gradients, as for `apply`, summed over the replicas.
            trainable_variables: As for `apply`.
        """
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(trainable_variables)
        self.hold_step_count()
        # Counts must not run ahead of the gradients: at the end of the data, a training
        # step starts without a batch.
        with kernels.after_gradients(grads) if kernels else nullcontext():
            super().apply(grads, trainable_variables)

    def _takes_sparse_gradients(self):
        """Returns whether sparse gradients stay sparse on the way to `update_step`."""
        return kernels is not None and not (
            self.gradient_accumulation_steps
            or self.loss_scale_factor
            or self.clipnorm
            or self.clipvalue
            or self.global_clipnorm
        )

    def update_variables(self, grads, variables, learning_rate):
        """Updates variables, each by `update_step`, given all their gradients."""
        with (
            update.model_update(self, learning_rate) as current,
            kernels.deferred(self._has_many_shapes) if kernels else nullcontext(),
        ):
            if is_replicated():
                self._update_replica(grads, variables, current.learning_rate)
            elif replicas and replicas.mirrored_scope():
                super().update_variables(grads, variables, current.learning_rate)
            else:  # On TensorFlow Keras passes variables without their paths.
                for gradient, variable in zip(grads, variables):
                    self.update_step(gradient, variable, current.learning_rate)
        self._count_updates(current.made)

    def _count_updates(self, made):
        """Adds to the counts how many updates the variable of each index was given."""
        counts, dtype = local(self.update_counts), self.update_counts.dtype
        numbers = [made.get(i, 0) for i in range(counts.shape[0])]
        largest = int(np.iinfo(keras.backend.standardize_dtype(dtype)).max)
        self.assign(
            counts,
            ops.minimum(counts, largest - max(numbers))
            + ops.cast(ops.array(numbers), dtype),
        )

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its slots, given its gradient.

        Args:
            gradient: Dense tensor of the variable's shape, or `tf.IndexedSlices`.
            variable: One of those that the optimizer was built on.
            learning_rate: Scalar tensor. A subclass that overrides this method may
                pass on another, for learning rates by layer.
        """
        update.update_variable(self, gradient, variable, learning_rate)
        index = internals.variable_index(self, variable)
        if not update.note_update(self, index):
            # As in `apply_reduced`.
            with kernels.after_gradients([gradient]) if kernels else nullcontext():
                self._count_updates({index: 1})

    def new_averages(self, g, slots, betas=None):
        """Returns the slots' new values, as a pure function.

        Args:
            g: Gradient, a float32 or float64 tensor.
            slots: List of the slots' values, in the order of `self.slots`.
            betas: beta and 1 - beta, as scalar tensors of g's dtype. Defaults to
                `None`: as constants.

        Returns:
            List of their new values.
        """
        observed = {"m_tilde": lambda: g, "v_tilde": lambda: rules.saturating_square(g)}
        return [
            rules.moving_average(average, observed[name](), self.beta, betas)
            for name, average in zip(self.slots, slots)
        ]

    def new_theta(self, theta, g, slots, learning_rate, decay, correction, factor):
        """Returns the variable's new value, as a pure function.

        Args:
            theta: Variable, a float32 or float64 tensor of any shape.
            g: Its gradient; like all that follow, of the same dtype.
            slots: List of the slots' new values, in the order of `self.slots`.
            learning_rate: Scalar.
            decay: Scalar, learning rate times weight decay, or `None`.
            correction: Scalar, 1 / (1 - beta^t) for the count t of this update.
            factor: Scalar, the method's `noise_factor` for t.
        """
        average = dict(zip(self.slots, slots))
        m, v = average.get("m_tilde"), average.get(self.second_slot)
        finite = ops.isfinite(g if m is None else m)
        if self.counts_updates:
            m = rules.bias_corrected(m, correction)
            v = None if v is None else v * correction
        step = learning_rate * self.direction(g, m, v, factor)
        # The sign of an infinite gradient is 1: NaN shows that there was one.
        step = ops.where(finite, step, math.nan)
        if decay is not None:
            theta = theta - decay * theta
        return theta - step

    def noise_factor(self, t):
        """Returns the factor that makes v - m^2 the variance that the method adapts to.

        A scalar for each update count t; 0 for methods that do not adapt.
        """
        return ops.zeros_like(t)

    def direction(self, g, m, v, factor):
        """Returns the direction of descent, before the learning rate.

        Args:
            g: Gradient, a float32 or float64 tensor.
            m: Its average, corrected for its start where `counts_updates`; `None`
                without the slot m~.
            v: The average of g^2, corrected for its start; `None` without v~.
            factor: Scalar, `noise_factor` for the count of this update.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define direction(g, m, v, factor)."
        )

    @classmethod
    def own_arguments(cls):
        """Returns the names of a method's arguments that not all methods have."""
        common = arguments.names(MomentOptimizer)
        return [name for name in arguments.names(cls) if name not in common]

    def get_config(self):
        """Returns the arguments that make an equal optimizer, for `from_config`."""
        config = super().get_config()
        names = arguments.names(update.package_class(self))
        return config | {n: getattr(self, n) for n in names if n not in config}
