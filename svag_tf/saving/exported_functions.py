"""The functions of an exported model, and their signatures."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import warnings
from typing import Any

import keras

from svag_tf import internals, native
from svag_tf.optional import tensorflow as tf
from svag_tf.saving.exported_data import (
    arguments_for,
    form_for,
    inputs_of,
    of_batch_size,
)
from svag_tf.saving.exported_state import (
    read_checkpoint,
    state_and_description,
    tf_variable,
    write_checkpoint,
)
from svag_tf.saving.model_state import (
    optimizers_of,
    parts_of,
)
from svag_tf.saving.trained_data import (
    MADE_HERE,
    TRAIN_ON_BATCH,
    Form,
    known_sizes,
    leaves,
    map_leaves,
    shown,
    traced_data,
    trained_kind,
)

_PYTHON_OPS = ("EagerPyFunc", "PyFunc", "PyFuncStateless")


def functions_of(model, specified, batch_size):
    """Returns a `tf.Module` of all functions, and the signatures, ready to save."""
    steps = _Steps(model, specified, batch_size)
    given, known = steps.given, steps.known
    if not model.trainable_variables:
        raise ValueError(
            "The model must have trainable variables. It has none. Set `trainable` of "
            "the layers to train, and compile the model again."
        )
    state, like = state_and_description(model, steps.are_unseeded())
    description = json.dumps(like)
    optimizers = [o for o in optimizers_of(model).values() if o.built]
    if not optimizers:
        raise ValueError(
            "The model's training step must use an optimizer of the model. Make the "
            "optimizer an attribute of the model or of a layer, also in a list or dict."
        )

    def train(**arguments):
        model.reset_metrics()
        step = functools.partial(steps.train, given, arguments)
        for specs in known:
            like = _are_like(arguments, specs)
            own = functools.partial(steps.train, specs, arguments)
            step = functools.partial(tf.cond, like, own, step)
        return step()

    def evaluate(**arguments):
        model.reset_metrics()
        return steps.evaluate(arguments)

    def step():
        return {"step": tf.identity(optimizers[0].iterations)}

    def save(path):
        with tf.control_dependencies(write_checkpoint(path, state, description)):
            return step()

    def restore(path):
        with tf.control_dependencies(read_checkpoint(path, state, description)):
            return step()

    def train_from(path, to, **arguments):
        tf.cond(tf.equal(path, ""), step, lambda: restore(path))
        return train(**arguments) | save(to)

    path = tf.TensorSpec((), tf.string)
    module, signatures = tf.Module(), {}
    for name, function, arguments in (
        ("train", train, given),
        ("infer", steps.infer, {"x": given["x"]}),
        ("evaluate", evaluate, given),
        ("save", save, {"path": path}),
        ("restore", restore, {"path": path}),
        ("train_from", train_from, {"path": path, "to": path, **given}),
    ):
        if name in steps.missing:
            continue
        if function is not steps.infer:
            function = tf.function(function, autograph=False)
        concrete = _trace(name, function, arguments)
        setattr(module, name, function)
        signatures[name] = _signature(name, concrete, arguments)
    module.state = state
    metrics = (*model.metrics, *parts_of(model, keras.metrics.Metric).values())
    module.metrics = [tf_variable(v) for metric in metrics for v in metric.variables]
    module.tables = [
        each
        for each in tf.train.TrackableView(model).descendants()
        if isinstance(each, tf.saved_model.experimental.TrackableResource)
    ]
    _check_traced(signatures, [*module.state.values(), *module.metrics])
    if batch_size is None:
        _let_keras_use_it(model, given)
    return module, signatures


class _Steps:
    """A model's steps as functions for certain specs of data.

    Tracing them makes the model create what it creates when it first sees data: layers,
    metrics, the variables of optimizers.

    Attributes:
        given: The specs of a training step's arguments.
        known: Specs of the sizes for which it has a step of its own.
        missing: Which of "infer" and "evaluate" the model cannot do.
    """

    def __init__(self, model, specified, batch_size):
        self.model = model
        self.missing = set()
        self._graphs = []
        kind = trained_kind(model, specified)
        self.infer = tf.function(self._infer, autograph=False)
        self._train_step = tf.function(
            model.train_step, jit_compile=model.jit_compile, autograph=False
        )
        self._test_step = tf.function(model.test_step, autograph=False)
        x = inputs_of(model, specified, kind)
        self.given = arguments_for(model, specified, kind, x, lambda: self._outputs(x))
        self.form = form_for(kind, self.given)
        self.known = known_sizes(model, self.given)
        if batch_size is not None:
            self.known = [of_batch_size(batch_size, self.given)]
        try:
            self._trace_train()
        except ValueError:
            if batch_size is not None or "x" in specified or not self.known:
                raise
            # It needs the sizes that it was trained with.
            self.given, *self.known = self.known
            self._trace_train()
        self._try("infer", self.infer, {"x": self.given["x"]})
        evaluate = tf.function(lambda **a: self.evaluate(a), autograph=False)
        self._try("evaluate", evaluate, self.given)

    def train(self, specs, arguments):
        shaped = map_leaves(_of_known_shape, arguments, specs)
        return dict(self._train_step(self.form.packed(shaped)))

    def evaluate(self, arguments):
        return dict(self._test_step(self.form.packed(arguments)))

    def are_unseeded(self):
        """Returns whether a step draws random numbers without a seed of its own."""
        used = [v for graph in self._graphs for v in graph.variables]
        # Asked for only if needed: Keras creates it on first use.
        maybe = any(internals.SEED in v.name for v in used)
        return maybe and id(internals.shared_seed()) in map(id, used)

    def _infer(self, x):
        return self.model.predict_step(Form.of({"x": x}).packed({"x": x}))

    def _outputs(self, x):
        return _trace("infer", self.infer, {"x": x}).structured_outputs

    def _trace_train(self):
        step = tf.function(lambda **a: self.train(self.given, a), autograph=False)
        self._graphs.append(_trace("train", step, self.given).graph)

    def _try(self, name, function, arguments):
        try:
            self._graphs.append(_trace(name, function, arguments).graph)
        except ValueError as error:
            self.missing.add(name)
            if self._has(name):
                warnings.warn(
                    f"The exported model has no signature `{name}`. {error}",
                    stacklevel=5,
                )

    def _has(self, name):
        """Returns whether the model is meant to do this, so that failing is a fault."""
        own, step = type(self.model), {"infer": "predict_step", "evaluate": "test_step"}
        if getattr(own, step[name]) is not getattr(keras.Model, step[name]):
            return True
        calls = own.call is not keras.Model.call
        return calls and (name == "infer" or self.model.loss is not None)


def _let_keras_use_it(model, given):
    """Makes Keras use the exported step, for any batch size, if it has none yet."""
    if (
        type(model).make_train_function is not keras.Model.make_train_function
        or model.run_eagerly
        or any(leaves(data) for data, _ in traced_data(model))
    ):
        return
    model.make_train_function()
    own_step: Any = model.train_function

    def train(**arguments):
        return own_step(iter([TRAIN_ON_BATCH.packed(arguments)]))

    # A model's own step may accept only what `fit` gives it.
    with contextlib.suppress(ValueError):
        _trace("train", tf.function(train, autograph=False), given)
    MADE_HERE.update(step for _, step in traced_data(model))


def _are_like(tensors, specs):
    """Returns whether tensors have the shapes of specs, as a boolean tensor."""
    return tf.reduce_all(
        [
            tf.shape(tensor)[axis] == n
            for tensor, spec in zip(leaves(tensors), leaves(specs))
            for axis, n in enumerate(spec.shape)
            if n is not None
        ]
    )


def _of_known_shape(tensor, spec):
    """Returns the tensor with exactly the static shape that Keras' step knows.

    TensorFlow's graph optimizer takes shapes from wherever they are known: from the
    caller (a loaded function is retraced for the shapes that it is called with), or
    from the other branch of a condition. It does not see through an optional.
    """
    return tf.raw_ops.OptionalGetValue(  # Raises an error if the shape differs.
        optional=tf.raw_ops.OptionalFromValue(components=[tensor]),
        output_types=[spec.dtype],
        output_shapes=[spec.shape],
    )[0]


def _trace(name, function, arguments):
    try:
        return function.get_concrete_function(**arguments)
    except Exception as error:  # Whatever a model's own code raises.
        raise ValueError(
            f"The model cannot be exported: {name}({shown(arguments)}) fails. If its "
            "data is different, describe it with the arguments `x`, `y` and "
            f"`sample_weight` of `export_trainable`. The error was: {error}"
        ) from error


def _signature(name, concrete, arguments):
    """Returns `concrete` with a name for each of its input and output tensors."""
    specs: dict[str, Any] = {}
    for argument in sorted(arguments):  # The order of `keras.tree` in a dict.
        specs |= _named(argument, arguments[argument])
    outputs = concrete.structured_outputs
    output = "" if isinstance(outputs, dict) else "output"
    _named(output, outputs)  # Raises an error of its own.

    def function(**tensors):
        ordered = iter([tensors[name] for name in specs])
        inputs = map_leaves(lambda _: next(ordered), arguments)
        return _named(output, concrete(**inputs))

    specs = {k: tf.TensorSpec(v.shape, v.dtype, k) for k, v in specs.items()}
    return _trace(name, tf.function(function, autograph=False), specs)


def _named(prefix, structure):
    """Returns the tensors of a structure by names made from their paths in it."""
    named: dict[str, Any] = {}
    paths: dict[str, str] = {}
    for path, leaf in keras.tree.flatten_with_path(structure):
        if leaf is None:
            continue
        parts = [str(part) for part in path]
        name = "_".join([prefix] * bool(prefix) + parts)
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        if name in named:
            raise ValueError(
                f"The model cannot be exported: {paths[name]!r} and {'/'.join(parts)!r}"
                f" would both be {name!r} in a signature, whose names have letters, "
                "digits and _ only. Rename one of them."
            )
        named[name], paths[name] = leaf, "/".join(parts)
    return named


def _check_traced(signatures, known):
    """Raises an error if functions need something that a SavedModel cannot hold."""
    known = {id(v) for v in known}
    for name, function in signatures.items():
        graph = function.graph.as_graph_def()
        for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
            for node in nodes:
                if node.op in _PYTHON_OPS:
                    raise ValueError(
                        "The model cannot be exported: it calls Python code (a "
                        f"tf.py_function or tf.numpy_function, {node.name} in {name}), "
                        "which a SavedModel cannot hold. Write it with operations of "
                        "TensorFlow or keras.ops."
                    )
                if node.op == native.OPERATION:
                    raise ValueError(
                        "The model cannot be exported: its training step is a "
                        "tf.function that was traced with the native update, which "
                        "runs only with this package. Give the optimizer "
                        "jit_compile=True, which has the same bits."
                    )
        unknown = [v.name for v in function.graph.variables if id(v) not in known]
        if unknown:
            raise ValueError(
                "The model cannot be exported: it uses variables that are not its own, "
                f"{', '.join(unknown)} in {name}. Make them weights of the model or a "
                "layer (add_weight), and the optimizer, metric or layer that they "
                "belong to (or a keras.random.SeedGenerator) an attribute of the model."
            )
