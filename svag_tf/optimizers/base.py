"""What the seven optimizers share: arguments, slots, step count and dispatch."""

import functools
import math
import numbers
import threading
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops

from svag_tf import rules
from svag_tf.optimizers import arguments
from svag_tf.saving.optimizer_state import OptimizerState

checkpoints: Any = None
kernels: Any = None
uneven_batches: Any = None
replicas: Any = None
if keras.backend.backend() == "tensorflow":
    from svag_tf import kernels, replicas
    from svag_tf.replicas import uneven_batches
    from svag_tf.saving import checkpoints

# The optimizer, the learning rate and the scalars of the update that is being made.
_STEPS = threading.local()


def _check_shape(gradient, variable):
    """Raises an error if a gradient is not of its variable's shape, as far as known."""
    expected = tuple(variable.shape)
    _check_fits("a gradient", gradient, expected, variable)
    values = getattr(gradient, "values", None)
    if values is not None and not callable(values):
        rows = (None, *expected[1:])
        _check_fits("a sparse gradient with values", values, rows, variable)


def _check_fits(what, tensor, expected, variable):
    shape = getattr(tensor, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return
    shape = tuple(shape)
    fits = len(shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(shape, expected)
    )
    if not fits:
        raise ValueError(
            f"The gradient of variable {variable.name} must have its shape, "
            f"{tuple(variable.shape)}. Received: {what} of shape {shape}"
        )


def _densified(gradient, variable):
    """`gradient` as a dense tensor, the rows of repeated indices summed.

    A sparse gradient (`tf.IndexedSlices`, what an embedding's gather has) has
    `indices` and `values`; every other tensor is returned as it is.
    """
    if not (hasattr(gradient, "indices") and hasattr(gradient, "values")):
        return gradient
    if callable(gradient.values):  # A sparse torch.Tensor: these are methods.
        return gradient.to_dense() if gradient.is_sparse else gradient
    return ops.segment_sum(
        gradient.values, gradient.indices, num_segments=variable.shape[0]
    )


def _check_variable(variable):
    """Raises an error if a variable cannot be optimized."""
    path = getattr(variable, "path", variable.name)
    try:
        dtype = keras.backend.standardize_dtype(variable.dtype)
    except ValueError:  # One that Keras does not know.
        dtype = getattr(variable.dtype, "name", str(variable.dtype))
    if dtype not in arguments.STATE_DTYPES:
        remedy = "Give the optimizer the model's trainable variables alone."
        if dtype.startswith("complex"):
            remedy = (
                "Keep its real and its imaginary part as two real variables, and make "
                "the complex number of them in the model."
            )
        dtypes = ", ".join(arguments.STATE_DTYPES)
        raise ValueError(
            f"A variable must be of one of the dtypes {dtypes}. "
            f"Received: the variable {path} of dtype {dtype}. {remedy}"
        )
    shape = variable.shape
    if getattr(shape, "rank", 0) is None or any(n is None for n in shape):
        raise ValueError(
            "A variable must have a shape that is fully known, as its slots have the "
            f"same. Received: the variable {path} of shape {shape}"
        )


def _local(variable):
    """On a replica, its own copy of a variable."""
    return variable if replicas is None else replicas.local(variable)


def _replicated():
    """Whether this is one of the replicas of a tf.distribute strategy."""
    return replicas is not None and replicas.context() is not None


def _flat_path(variable):
    """A variable's path as a part of a name."""
    path = getattr(variable, "path", variable.name)
    return path.replace("/", "_").replace(":", "_")


@functools.cache
def _rule_methods(cls):
    """Names of the methods of a class that make the update of one variable."""
    names = ("new_averages", "new_theta", "direction", "noise_factor", "gamma")
    return [n for n in dir(cls) if n in names or n.endswith(("_rule", "_of_count"))]


@functools.cache
def _rule_arguments(cls):
    """The arguments of a class's constructor beyond those that all of them have."""
    common = {"beta", *arguments.names(MomentOptimizer)}
    return [name for name in arguments.names(cls) if name not in common]


class MomentOptimizer(keras.optimizers.Optimizer):
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
            `iterations`, which places a learning rate schedule, is counted apart.
        row_update_counts: With `sparse_updates="lazy"`, the same for the rows of every
            variable: a list of variables of shape (rows,), `None` for vectors.
    """

    # Keras has no public name for these, which its own optimizers build on as well:
    # the hooks _clip_gradients, _apply_weight_decay and _backend_update_step, and
    # _trainable_variables, _get_variable_index, _use_weight_decay and
    # _get_current_learning_rate. Nor has TensorFlow for _trackable_children and
    # _lookup_dependency. They are used in this class and nowhere else.
    slots: tuple[str, ...] = ()
    # The slot that the noise is estimated from.
    second_slot = "v_tilde"
    # Whether the direction depends on the update count t.
    counts_updates = False
    # How a method that estimates the noise damps its step, for `GradientNoise`:
    # "gradient" damps m, "sampled" g, by `rules.gamma_gradient`; "sign" and "adam" a
    # sign, by `rules.gamma_sign` and `rules.gamma_sign_adam`.
    damping: str | None = None
    m_tilde: list | tuple = ()
    v_tilde: list | tuple = ()
    update_counts: Any = None
    row_update_counts: list | tuple = ()
    # With `use_ema`, whether each variable's average holds a value: 0 or 1.
    has_average: Any = None
    exchanged: Any = None
    local_variables: Any = ()
    # Whether a kernel for each of the variables' shapes would take long to compile.
    _has_many_shapes = False
    # Whether it is in Keras' own LossScaleOptimizer.
    scaled_by_keras = False

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
        for size, value in (
            ("weight_decay", weight_decay),
            ("clipnorm", clipnorm),
            ("clipvalue", clipvalue),
            ("global_clipnorm", global_clipnorm),
        ):
            if value is not None:
                arguments.check_size(size, value)
        learning_rate = arguments.check_learning_rate(learning_rate)
        beta = arguments.check_beta(beta)
        state_dtype = arguments.check_state_dtype(state_dtype)
        arguments.check_choice("jit_compile", jit_compile, ("auto", True, False))
        arguments.check_choice("sparse_updates", sparse_updates, ("exact", "lazy"))
        if replicas and replicas.mirrored_scope():
            replicas.mend_fit()
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
        # A kernel of its own is forgotten with the optimizer.
        self._own_kernels = kernels.Store() if kernels else None
        self._state = OptimizerState(self)
        self._record = self._guard = None
        if checkpoints:
            self._record = checkpoints.Record(self, self._state)
            self._guard = checkpoints.Guard()

    @property
    def learning_rate(self):
        """The current learning rate; assign a number to change it."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value):
        if isinstance(value, (str, bytes, bool, type(None), numbers.Number)):
            value = arguments.check_learning_rate(value)
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def __setattr__(self, name, value):
        # A LossScaleOptimizer takes it away from the optimizer that it is given.
        if name == "loss_scale_factor" and value is None and hasattr(self, name):
            self.scaled_by_keras = True
        super().__setattr__(name, value)

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
            _check_variable(variable)
        self._state.note_variables(variables)
        with replicas.eager_variables() if replicas else nullcontext():
            self._create_variables(variables)
        # In the graph of a training step it would be loaded at every step.
        with checkpoints.tf.init_scope() if checkpoints else nullcontext():
            self._state.restore_waiting()
            if self._record is not None:
                self._record.restore_waiting()

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
        slot_dtype = self._slot_dtype(variable)
        if slot_dtype == keras.backend.standardize_dtype(variable.dtype):
            return self.add_variable_from_reference(variable, name=name)
        return self.add_variable(
            shape=variable.shape,
            dtype=slot_dtype,
            name=f"{_flat_path(variable)}_{name}",
            layout=getattr(variable, "_layout", None),
        )

    def _slot_dtype(self, variable):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        return self.state_dtype or (
            "float32" if dtype in ("float16", "bfloat16") else dtype
        )

    def scale_loss(self, loss):
        """The loss whose gradients `apply` is given, as `fit` asks for it.

        Args:
            loss: Scalar tensor. On one of several replicas, that of its part of the
                batch, and `fit` weights it by the size of that part.
        """
        if uneven_batches is not None:
            loss = uneven_batches.of_whole_batch(loss)
        return super().scale_loss(loss)

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
            variables = self._trainable_variables
        if len(grads) != len(variables):
            raise ValueError(
                "Arguments `grads` and `trainable_variables` must have the same "
                f"length. Received: {len(grads)} gradients, {len(variables)} variables"
            )
        for gradient, variable in zip(grads, variables):
            _check_shape(gradient, variable)
        if not self._takes_sparse_gradients():
            grads = [_densified(g, v) for g, v in zip(grads, variables)]
        if _replicated():
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
        # What counts must not run ahead of the gradients: at the end of its data, a
        # training step begins that has no batch.
        with kernels.after(grads) if kernels else nullcontext():
            super().apply(grads, trainable_variables)

    def reduced(self, grads, variables):
        """What a replica's update starts from: the gradients summed over the replicas.

        Args:
            grads: List of this replica's gradients, or `None`.
            variables: List of the variables that they belong to.
        """
        self._check_replicas(variables)
        # A variable to be overwritten has no gradient but its own new value.
        own = [getattr(v, "overwrite_with_gradient", False) for v in variables]
        given = [
            None if o else g for g, o in zip(uneven_batches.without_empty(grads), own)
        ]
        if all(g is None for g in given):
            return grads  # Keras warns of it, or raises an error.
        reduced, self.exchanged = replicas.summed(given)
        return [g if o else r for g, o, r in zip(grads, own, reduced)]

    def _check_replicas(self, variables):
        replicas.check_mirrored([self._iterations, *variables])
        if self.scaled_by_keras:
            raise ValueError(
                "keras.optimizers.LossScaleOptimizer looks for infinite gradients on "
                "the first replica only, and lets those of others through. Compile "
                "with svag_tf.distribution.LossScaleOptimizer(optimizer), which "
                "looks at all; `compile` in a mixed_float16 policy takes Keras' own."
            )

    def _takes_sparse_gradients(self):
        """Whether a sparse gradient can stay sparse on its way to `update_step`."""
        return kernels is not None and not (
            self.gradient_accumulation_steps
            or self.loss_scale_factor
            or self.clipnorm
            or self.clipvalue
            or self.global_clipnorm
        )

    def _clip_gradients(self, grads):
        if self.clipnorm or self.clipvalue or self.global_clipnorm:
            # The sum of squares of a float16 gradient overflows at a norm of 256.
            grads = [
                ops.cast(g, "float32")
                if keras.backend.standardize_dtype(g.dtype) in ("float16", "bfloat16")
                else g
                for g in grads
            ]
        return super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables):
        """Does nothing: weight decay is folded into the update."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # The scalars of all variables at once. Keras has no public hook for that;
        # without this one `update_step` gets them by itself, with the same result.
        learning_rate = ops.convert_to_tensor(learning_rate)
        scalars = {
            dtype: self._scalars_of_variables(learning_rate, dtype)
            for dtype in {self._compute_dtype(v) for v in self._trainable_variables}
        }
        outer = getattr(_STEPS, "step", None)
        _STEPS.step = self, learning_rate, scalars
        try:
            with kernels.together() if self._has_many_shapes else nullcontext():
                if _replicated():
                    self._update_replica(grads, trainable_variables, learning_rate)
                else:
                    super()._backend_update_step(
                        grads, trainable_variables, learning_rate
                    )
        finally:
            _STEPS.step = outer
        self._count_updates(trainable_variables)

    def _count_updates(self, variables):
        updated = {self._get_variable_index(v) for v in variables}
        ones = [int(i in updated) for i in range(len(self._trainable_variables))]
        counts, dtype = _local(self.update_counts), self.update_counts.dtype
        largest = int(np.iinfo(keras.backend.standardize_dtype(dtype)).max)
        self.assign(
            counts, ops.minimum(counts, largest - 1) + ops.cast(ops.array(ones), dtype)
        )

    def _update_model_variables_moving_average(self, trainable_variables):
        # As Keras' own, but by what each variable's average holds, not by `iterations`.
        if not self.use_ema:
            return
        begun = ops.unstack(_local(self.has_average) > 0)
        averages = self._model_variables_moving_average
        for variable, average, has_average in zip(trainable_variables, averages, begun):
            if average is not None:
                has_average = ops.cast(has_average, variable.dtype)
                momentum = ops.multiply(has_average, self.ema_momentum)
                old = ops.multiply(momentum, average)
                average.assign(old + ops.multiply(ops.subtract(1, momentum), variable))
        ones = ops.ones(self.has_average.shape, self.has_average.dtype)
        self.assign(_local(self.has_average), ones)

    def _update_replica(self, grads, variables, learning_rate):
        """Updates this replica's copies of the variables."""
        for gradient, variable in zip(grads, variables):
            self.update_step(gradient, replicas.local(variable), learning_rate)

    def _backend_increment_gradient_accumulators(self, grads, acc_grads):
        if not _replicated():
            super()._backend_increment_gradient_accumulators(grads, acc_grads)
            return
        for gradient, accumulated in zip(grads, acc_grads):
            replicas.local(accumulated).assign_add(gradient)

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        for variable in trainable_variables:
            average = self._model_variables_moving_average[
                self._get_variable_index(variable)
            ]
            if average is not None:
                # A copy: JAX takes the buffer of a variable from it in `fit`, and one
                # of two variables can be taken once only.
                average = ops.convert_to_tensor(_local(average)) + 0
                self.assign(_local(variable), average)

    def _scalars_of_variables(self, learning_rate, dtype):
        t = ops.cast(_local(self.update_counts), dtype) + 1.0
        columns = self._scalars(t, learning_rate, dtype)
        shape = (len(self._trainable_variables),)
        return ops.unstack(ops.stack([ops.broadcast_to(c, shape) for c in columns], 1))

    def _scalars(self, t, learning_rate, dtype):
        """The numbers that an update needs, in float32 or wider.

        Args:
            t: Count of the update, from 1, of any shape. Unused where
                `counts_updates` is False.
            learning_rate: Scalar.
            dtype: That of the computation.

        Returns:
            Learning rate; learning rate times weight decay; beta and 1 - beta, which
            are no constants of a kernel so that it serves all of them;
            1 / (1 - beta^t); and the method's `noise_factor(t)`. The last two have the
            shape of t.
        """
        learning_rate = ops.cast(learning_rate, dtype)
        betas = [
            ops.convert_to_tensor(x, dtype=dtype) for x in (self.beta, 1.0 - self.beta)
        ]
        of_count = ops.ones((), dtype), ops.zeros((), dtype)
        if self.counts_updates:
            of_count = self._scalars_of_count(t, dtype)
        decay = learning_rate * (self.weight_decay or 0.0)
        return learning_rate, decay, *betas, *of_count

    def _scalars_of_count(self, t, dtype):
        """Those that depend on the count t: 1 / (1 - beta^t) and `noise_factor(t)`."""
        t = ops.cast(ops.maximum(t, 1), dtype)
        return rules.bias_correction(t, self.beta), self.noise_factor(t)

    def _compute_dtype(self, variable):
        """The widest of float32, the variable's and its slots' dtype."""
        dtypes = [keras.backend.standardize_dtype(variable.dtype)]
        if self.slots:
            dtypes.append(self._slot_dtype(variable))
        # Keras' own result_type makes float32 of float64 on some backends.
        return "float64" if "float64" in dtypes else "float32"

    def _scalars_of(self, index, learning_rate, dtype):
        """The scalars of one variable, those of this step if that has its rate."""
        step = getattr(_STEPS, "step", None)
        if step and step[0] is self and step[1] is learning_rate:
            return step[2][dtype][index]
        return self._scalars_of_variables(learning_rate, dtype)[index]

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its slots, given its gradient.

        Args:
            gradient: Dense tensor of the variable's shape, or `tf.IndexedSlices`.
            variable: One of those that the optimizer was built on.
            learning_rate: Scalar tensor. A subclass that overrides this method may
                pass on another, for a learning rate of each layer's own.
        """
        self._update_variable(gradient, variable, learning_rate)
        step = getattr(_STEPS, "step", None)
        if step is None or step[0] is not self:  # Called by a wrapper, not by `apply`.
            self._count_updates([variable])

    def _update_variable(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        dtype = self._compute_dtype(variable)
        scalars = self._scalars_of(index, learning_rate, dtype)
        decays = self._decays(variable)
        stored = [variable, *(getattr(self, name)[index] for name in self.slots)]
        steps = [functools.partial(self._theta_rule, dtype=dtype, decays=decays)]
        if self.slots:
            steps.insert(0, functools.partial(self._slots_rule, dtype=dtype))
        if kernels is None:
            for rule in steps:
                for part, value in zip(stored, rule(gradient, scalars, *stored)):
                    if value is not None:
                        self.assign(part, value)
            return
        key = (*self._rule_key(), dtype, decays)
        together = not self.slots or self._slot_dtype(variable) == dtype
        kernel = kernels.Kernel(tuple(steps), key, self.jit_compile, together)
        # Without slots and weight decay, a row without gradient stays as it is.
        lazy = self.sparse_updates == "lazy" or not (self.slots or decays)
        if lazy and len(variable.shape) >= 2:
            counts = self.row_update_counts[index] if self.counts_updates else None
            if counts is not None:  # Of which factors are computed in the kernel.
                kernel = kernel._replace(key=(*key, self.beta))
            kernels.update_lazily(kernel, stored, gradient, counts, scalars)
        else:
            kernels.update_soon(kernel, stored, gradient, scalars)

    def _decays(self, variable):
        return bool(self.weight_decay) and self._use_weight_decay(variable)

    def _run(self, rule, name, variables, gradient, learning_rate, index):
        """Runs one rule by a kernel of its own."""
        dtype = self._compute_dtype(self._trainable_variables[index])
        decays = self._decays(self._trainable_variables[index])
        rule = functools.partial(rule, dtype=dtype)
        key = (*self._rule_key(), dtype, name, decays)
        kernel = kernels.Kernel((rule,), key, self.jit_compile, True)
        scalars = self._scalars_of(index, learning_rate, dtype)
        kernels.update(kernel, variables, gradient, scalars)

    def _rule_key(self):
        """What distinguishes this optimizer's rule from others: a hashable tuple.

        All arguments of the constructor that a rule can see, but for beta, which is
        data. A subclass from elsewhere whose rule is its own may depend on anything:
        its instances have kernels of their own.
        """
        cls = type(self)
        ours = next(c for c in cls.__mro__ if c.__module__.startswith("svag_tf."))
        for name in _rule_methods(ours):
            if name in vars(self) or getattr(cls, name) is not getattr(ours, name):
                return (self._own_kernels,)
        own = [(n, repr(getattr(self, n))) for n in _rule_arguments(ours)]
        form = (self.beta == 0.0, self.beta < 0.5)  # Those of `rules.moving_average`.
        return (ours, self.slots, self.counts_updates, form, *own)

    def _slots_rule(self, gradient, scalars, theta, *slots, dtype):
        """The slots' new values, as they are stored."""
        values = scalars[0] if isinstance(scalars, tuple) else scalars
        _, _, *betas = ops.unstack(values)[:4]
        averages = self.new_averages(
            ops.cast(gradient, dtype), [ops.cast(slot, dtype) for slot in slots], betas
        )
        stored = [saturating_cast(x, s.dtype) for x, s in zip(averages, slots)]
        return [None, *stored]

    def _theta_rule(self, gradient, scalars, theta, *slots, dtype, decays):
        """The variable's new value, from the slots as they are stored."""
        if isinstance(scalars, tuple):  # Each row has a count of its own.
            scalars, counts = scalars
            learning_rate, decay, *_ = ops.unstack(scalars)
            correction, factor = self._scalars_of_count(counts, dtype)
        else:
            learning_rate, decay, _, _, correction, factor = ops.unstack(scalars)
        new = self.new_theta(
            ops.cast(theta, dtype),
            ops.cast(gradient, dtype),
            [ops.cast(slot, dtype) for slot in slots],
            learning_rate,
            decay if decays else None,
            correction,
            factor,
        )
        return [ops.cast(new, theta.dtype), *[None] * len(slots)]

    def new_averages(self, g, slots, betas=None):
        """The slots' new values as a pure function.

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
        """The variable's new value as a pure function.

        Args:
            theta: Variable, a float32 or float64 tensor of any shape.
            g: Its gradient, of the same shape and dtype, as all that follow.
            slots: List of the slots' new values, in the order of `self.slots`.
            learning_rate: Scalar.
            decay: Scalar, learning rate times weight decay, or `None`.
            correction: Scalar, 1 / (1 - beta^t) for the count t of this update.
            factor: Scalar, what the method's `noise_factor` gives for t.
        """
        average = dict(zip(self.slots, slots))
        m, v = average.get("m_tilde"), average.get(self.second_slot)
        finite = ops.isfinite(g if m is None else m)
        if self.counts_updates:
            m = rules.bias_corrected(m, correction)
            v = None if v is None else v * correction
        step = learning_rate * self.direction(g, m, v, factor)
        # The sign of an infinite gradient is 1: say aloud that there was one.
        step = ops.where(finite, step, math.nan)
        if decay is not None:
            theta = theta - decay * theta
        return theta - step

    def noise_factor(self, t):
        """The factor that makes v - m^2 the variance that the method adapts to.

        A scalar for each update count t; 0 for methods that do not adapt.
        """
        return ops.zeros_like(t)

    def direction(self, g, m, v, factor):
        """The direction of descent, before the learning rate.

        Args:
            g: Gradient, a float32 or float64 tensor.
            m: Its average, corrected for its start where `counts_updates`; `None`
                without the slot m~.
            v: The average of g^2, corrected for its start; `None` without v~.
            factor: Scalar, what `noise_factor` gives for the count of this update.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define direction(g, m, v, factor)."
        )

    def save_own_variables(self, store):
        """Puts the state into a store of Keras, with a record of whose state it is.

        Args:
            store: What Keras' `model.save` gives, or a dict.
        """
        self._state.save(store)

    def load_own_variables(self, store):
        """Takes the state from a store of Keras; at `build`, if not built before.

        State goes to the variables that it belongs to, by their paths and shapes. A
        variable whose state is not there starts afresh, at t = 1.

        Args:
            store: What `save_own_variables` has filled.

        Warns:
            OptimizerStateWarning: If not everything was restored.

        Raises:
            ValueError: If what was saved is damaged. The optimizer is as it was.
        """
        self._state.load(store)

    def keep_random_states(self, variables):
        """Saves these variables with its own; see `svag_tf.keep_random_state`."""
        self._state.keep_random_states(variables)
        if checkpoints:  # TensorFlow saves and restores what is in this list.
            self._random_states = [v.value for v in variables]

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        children = super()._trackable_children(save_type, **kwargs)
        if save_type != "checkpoint":
            return children
        random_states = children.get(checkpoints.RANDOM_STATES)
        return checkpoints.children(
            self._state, self._record, self._guard, random_states
        )

    def _lookup_dependency(self, name, cached_dependencies=None):
        if cached_dependencies is None:
            return super()._lookup_dependency(name)
        return checkpoints.child(name, cached_dependencies, self._state)

    def get_config(self):
        """The arguments that make an equal optimizer, for `from_config`."""
        return {
            **super().get_config(),
            "beta": self.beta,
            "state_dtype": self.state_dtype,
            "jit_compile": self.jit_compile,
            "sparse_updates": self.sparse_updates,
        }


def saturating_cast(x, dtype):
    """x cast to dtype, if finite at most its largest finite number."""
    dtype = keras.backend.standardize_dtype(dtype)
    if keras.backend.standardize_dtype(x.dtype) == dtype:
        return x
    limit = rules.largest(dtype)
    return ops.cast(ops.where(ops.isfinite(x), ops.clip(x, -limit, limit), x), dtype)
