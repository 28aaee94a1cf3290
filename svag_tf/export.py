"""A trained model as a SavedModel that goes on training, with TensorFlow alone."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.saved_state import (
    description_of,
    first_difference,
    shape_and_dtype,
    state_of,
)

tf: Any = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf  # type: ignore[no-redef]

_DESCRIPTION = "svag_tf_description"  # Its name in a checkpoint.
_UNREADABLE = (
    "cannot be restored: it is missing, damaged or not the checkpoint of an exported "
    "model. The log has TensorFlow's own message."
)
_PYTHON_OPS = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
_TEMPORARY_PREFIX = ".tmp-"
_WRITE_ERRORS = (OSError,) if tf is None else (OSError, tf.errors.OpError)


def export_trainable(
    model: keras.Model,
    path: str | os.PathLike[str],
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
) -> None:
    """Writes a model as a SavedModel that goes on training where the model stands.

    `tf.saved_model.load`, `saved_model_cli` and TensorFlow's C API run it, without
    Keras and without this package. Its signatures:

    | signature | takes | does and returns |
    | --- | --- | --- |
    | `train` | `x`, `y` | one step of the optimizer; `loss` and the metrics |
    | `infer` | `x` | `output`: what the model makes of it |
    | `evaluate` | `x`, `y` | `loss` and the metrics |
    | `save` | `path` | writes the state to a checkpoint; `step` |
    | `restore` | `path` | reads it back; `step` |
    | `train_from` | `path`, `x`, `y`, `to` | `restore`, `train` and `save` in one |

    `step` is the optimizer's count of updates. Loss and metrics are those of the batch
    alone. The batch dimension is as free as that of the model's inputs. k steps of
    `train` leave the same weights, bit for bit, as k steps of the model in Python on
    the same machine.

    TensorFlow optimizes a training step for batches of one known size to other last
    bits than one for batches of any size, and Keras has the one or the other,
    depending on how it is called first. The export has those that the model has been
    trained with since `compile`. A model that was not trained yet gets the one that
    is exported here, for batches of any size; as after its first step, what is then
    changed in Python, such as a layer's `trainable`, needs `compile`. See `batch_size`
    for a model that is trained elsewhere, and docs/saving.md for what equals what.

    The state is all that training goes on from: weights, random states such as those
    of dropout, and the optimizer's variables (slots, step count, averages, accumulated
    gradients, loss scale). Metrics are left out. `save` does not overwrite a
    checkpoint, so that what was saved before outlives a save that fails; `restore`
    changes nothing unless all of the state can be read. `train_from` starts from the
    state as exported if `path` is empty.

    An input, target or output that is a dict or a list has a name for each part:
    `x_left` and `x_right`, `y_0` and `y_1`, `output_0` and `output_1`, and for the
    outputs of a dict its keys. Each signature is also a function of the loaded object,
    which takes and returns the structures themselves: `loaded.train(x=..., y=...)`.

    Args:
        model: Compiled and built `keras.Model` on the TensorFlow backend, with any
            Keras optimizer. If the optimizer is not built yet, it is built here.
        path: Folder to write: a new one, or an empty one. It appears when it is
            complete, or not at all.
        x: What `x` is like: an array, a tensor or a `tf.TensorSpec`, or a structure of
            them; of arrays and tensors, the first dimension is taken as free. Defaults
            to `None`: the inputs of a functional or sequential model.
        y: What `y` is like, likewise. Defaults to `None`: int64 labels without the
            last axis for a sparse cross-entropy, otherwise like the model's output,
            floats being of Keras' `floatx()`; and no `y` for a model without a loss of
            its own.
        sample_weight: What a further argument `sample_weight` of `train`, `evaluate`
            and `train_from` is like, likewise; `True` for one float for each example.
            Defaults to `None`: there is no such argument.
        batch_size: Examples of a batch, at least 1: batches of this size alone have a
            training step of their own, as in Python if the first batch that
            `train_on_batch` gets has this size, or all that `fit` gets. All other
            sizes remain possible. Defaults to `None`: the sizes for which the model
            has a training step of its own already.

    Raises:
        ValueError: If the model cannot be exported, or an argument is not as above.
            Nothing is written.
        FileExistsError: If `path` exists and is not an empty folder.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np, svag_tf, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> folder = os.path.join(tempfile.mkdtemp(), "exported")
    >>> svag_tf.export_trainable(model, folder)
    >>> loaded = tf.saved_model.load(folder)
    >>> x, y = np.eye(4, 3, dtype="float32"), np.ones((4, 1), "float32")
    >>> logs = loaded.signatures["train"](x=x, y=y)
    >>> list(logs)
    ['loss']
    >>> float(logs["loss"]) == model.train_on_batch(x, y)
    True
    """
    _check_model(model)
    with whole_folder(path) as folder:
        module, signatures = _traced(model, x, y, sample_weight, batch_size)
        try:
            tf.saved_model.save(module, str(folder), signatures=signatures)
        except AssertionError as error:  # A resource that is not a variable or table.
            raise ValueError(f"The model cannot be exported: {error}") from error


def restore_trained(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Takes back what an exported model has learned.

    Args:
        model: Compiled and built model like the one that was given to
            `export_trainable`, with an optimizer of the same class.
        path: What `save` of the exported model was given.

    Raises:
        ValueError: Naming the checkpoint, if it is damaged or not that of such a
            model. The model is then as it was.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np, svag_tf, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> folder = tempfile.mkdtemp()
    >>> svag_tf.export_trainable(model, os.path.join(folder, "exported"))
    >>> loaded = tf.saved_model.load(os.path.join(folder, "exported"))
    >>> x, y = np.eye(4, 3, dtype="float32"), np.ones((4, 1), "float32")
    >>> _ = loaded.train(x=x, y=y)
    >>> _ = loaded.save(path=os.path.join(folder, "trained"))
    >>> svag_tf.restore_trained(model, os.path.join(folder, "trained"))
    >>> int(model.optimizer.iterations)
    1
    """
    _check_model(model)
    path = os.fspath(path)
    variables = _state(model)
    expected = description_of(model)
    try:
        reader = tf.train.load_checkpoint(path)
        found = json.loads(reader.get_tensor(_DESCRIPTION))
        found = {key: found[key] for key in expected}
        values = {n: np.asarray(reader.get_tensor(n)) for n in dict(found["variables"])}
        kinds = {name: shape_and_dtype(value) for name, value in values.items()}
    except Exception as error:  # The reader raises many.
        raise ValueError(
            f"{path} is damaged, or not a checkpoint of an exported model: {error}"
        ) from error
    if found != expected:
        raise ValueError(
            f"The checkpoint {path} is that of another model or optimizer. "
            f"{first_difference(found, expected)}"
        )
    if kinds != expected["variables"]:
        raise ValueError(f"The checkpoint {path} is damaged: it contradicts itself.")
    for name, variable in variables.items():
        variable.assign(values[name])


def _check_model(model):
    """Raises an error if a model cannot be exported, as far as is seen at once."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"Argument `model` must be a keras.Model. Received: {model!r}")
    if tf is None:
        raise ValueError(
            "A SavedModel that trains needs Keras' TensorFlow backend. Received: the "
            f"backend {keras.backend.backend()!r}. Save the model as a `.keras` file, "
            "load that with KERAS_BACKEND=tensorflow and export it there."
        )
    if not model.built:
        raise ValueError(
            "The model must be built. Call it on a batch of data, or build(), first."
        )
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            "The model must be compiled with an optimizer: model.compile(optimizer, "
            "loss)."
        )
    if not model.trainable_variables:
        raise ValueError("The model must have trainable variables. It has none.")
    if not isinstance(_tf_variable(model.trainable_variables[0]), tf.Variable) or (
        type(model.distribute_strategy).__name__ != "_DefaultDistributionStrategy"
    ):
        raise ValueError(
            "The model must not be distributed. Received: a model made under "
            f"{type(model.distribute_strategy).__name__}. Save it as a `.keras` file "
            "and load that outside of the strategy's scope."
        )
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _tf_variable(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def _state(model):
    """All variables that training goes on from, by the names of a checkpoint."""
    return {name: _tf_variable(v) for name, v in state_of(model).items()}


def _traced(model, x, y, sample_weight, batch_size):
    """A `tf.Module` of all functions, and the signatures: ready to be saved."""
    given = {"x": _input_specs(model) if x is None else _specs("x", x)}
    infer = tf.function(lambda x: model.predict_step((x,)), autograph=False)
    outputs = _trace("infer", infer, given).structured_outputs
    y = _target_specs(model, outputs) if y is None else _specs("y", y)
    if y is not None:
        given["y"] = y
    if sample_weight is True:
        sample_weight = tf.TensorSpec(keras.tree.flatten(given["x"])[0].shape[:1])
    if sample_weight is not None:
        given["sample_weight"] = _specs("sample_weight", sample_weight)
    if batch_size is not None:
        _check_batch_size(batch_size, given["x"])
    _build_metrics(model, given, outputs)
    train_step = tf.function(
        model.train_step, jit_compile=model.jit_compile, autograph=False
    )

    def data_of(arguments):
        return tuple(arguments.get(name) for name in ("x", "y", "sample_weight"))

    if batch_size is None:
        known = _traced_specs(model, given)
    else:
        known = [_of_batch_size(batch_size, given)]

    def step_of(specs, arguments):
        shaped = keras.tree.map_structure(_of_known_shape, arguments, specs)
        return dict(train_step(data_of(shaped)))

    def train(**arguments):
        model.reset_metrics()
        step = functools.partial(step_of, given, arguments)
        for specs in known:
            like = _are_like(arguments, specs)
            own = functools.partial(step_of, specs, arguments)
            step = functools.partial(tf.cond, like, own, step)
        return step()

    def evaluate(**arguments):
        model.reset_metrics()
        return dict(model.test_step(data_of(arguments)))

    def step():
        return {"step": tf.identity(model.optimizer.iterations)}

    state = _state(model)
    description = json.dumps(description_of(model))

    def save(path):
        with tf.control_dependencies(_write_checkpoint(path, state, description)):
            return step()

    def restore(path):
        with tf.control_dependencies(_read_checkpoint(path, state, description)):
            return step()

    def train_from(path, to, **arguments):
        tf.cond(tf.equal(path, ""), step, lambda: restore(path))
        return train(**arguments) | save(to)

    path = tf.TensorSpec((), tf.string)
    module, signatures = tf.Module(), {}
    for name, function, arguments in (
        ("train", train, given),
        ("infer", infer, {"x": given["x"]}),
        ("evaluate", evaluate, given),
        ("save", save, {"path": path}),
        ("restore", restore, {"path": path}),
        ("train_from", train_from, {"path": path, "to": path, **given}),
    ):
        if function is not infer:
            function = tf.function(function, autograph=False)
        concrete = _trace(name, function, arguments)
        setattr(module, name, function)
        signatures[name] = _signature(name, concrete, arguments)
    module.state = state
    module.metrics = [_tf_variable(v) for v in model.metrics_variables]
    module.tables = [
        each
        for each in tf.train.TrackableView(model).descendants()
        if isinstance(each, tf.saved_model.experimental.TrackableResource)
    ]
    _check_traced(signatures, [*module.state.values(), *module.metrics])
    is_keras = type(model).make_train_function is keras.Model.make_train_function
    if batch_size is None and is_keras and not list(_traced_shapes(model)):
        # Keras has no step yet, and gets the same: for batches of any size.
        model.make_train_function()
        own_step: Any = model.train_function
        own_train = tf.function(
            lambda **arguments: own_step(iter([data_of(arguments)])), autograph=False
        )
        _trace("train", own_train, given)
    return module, signatures


def _traced_specs(model, given):
    """What data is like for which Keras has training steps: the most general first."""
    names = [name for name in ("x", "y", "sample_weight") if name in given]
    parts = [given[name] for name in names]
    own = keras.tree.flatten(parts)
    found = {}
    for shapes in _traced_shapes(model):
        if len(shapes) != len(own) or not all(
            shape.rank is not None and shape.is_compatible_with(spec.shape)
            for shape, spec in zip(shapes, own)
        ):
            continue
        shapes = [s.shape.merge_with(shape) for s, shape in zip(own, shapes)]
        specs = [tf.TensorSpec(shape, s.dtype) for s, shape in zip(own, shapes)]
        if specs != own:
            unknown = sum(n is None for shape in shapes for n in shape)
            found[-unknown, str(specs)] = specs
    return [
        dict(zip(names, keras.tree.pack_sequence_as(parts, found[key])))
        for key in sorted(found)
    ]


def _traced_shapes(model):
    """Of each of Keras' training steps, the shapes of x, y and sample weights."""
    parts = [model.train_function]
    if inspect.isfunction(model.train_function):  # A model may have made its own.
        parts += inspect.getclosurevars(model.train_function).nonlocals.values()
    for each in parts:
        for function in (each, getattr(each, "__wrapped__", None)):
            traced = getattr(
                function, "_list_all_concrete_functions_for_serialization", list
            )
            for concrete in traced():
                arguments, _ = concrete.structured_input_signature
                data = arguments[0] if arguments else None
                data = getattr(data, "_element_spec", data)  # That of an iterator.
                leaves = keras.tree.flatten(data)
                yield [x.shape for x in leaves if isinstance(x, tf.TensorSpec)]


def _of_batch_size(batch_size, specs):
    def sized(spec):
        if not spec.shape.rank or spec.shape[0] is not None:
            return spec
        return tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype)

    return keras.tree.map_structure(sized, specs)


def _are_like(tensors, specs):
    """Whether tensors have the shapes of specs: a boolean tensor."""
    return tf.reduce_all(
        [
            tf.shape(tensor)[axis] == n
            for tensor, spec in zip(*map(keras.tree.flatten, (tensors, specs)))
            for axis, n in enumerate(spec.shape)
            if n is not None
        ]
    )


def _of_known_shape(tensor, spec):
    """The tensor, of whose shape TensorFlow knows what it does in Python, not more.

    Its optimizer takes shapes from wherever in a graph they are known: from the caller
    (a loaded function is traced anew for the shapes that it is called with), or from
    the other branch of a condition. It does not see through an optional.
    """
    return tf.raw_ops.OptionalGetValue(  # Raises an error if the shape is another.
        optional=tf.raw_ops.OptionalFromValue(components=[tensor]),
        output_types=[spec.dtype],
        output_shapes=[spec.shape],
    )[0]


def _trace(name, function, arguments):
    try:
        return function.get_concrete_function(**arguments)
    except Exception as error:  # Whatever a model's own code raises.
        given = ", ".join(f"{k}={_shown(v)}" for k, v in arguments.items())
        raise ValueError(
            f"The model cannot be exported: {name}({given}) fails. If that is not what "
            "its data is like, tell `export_trainable` with the arguments `x`, `y` and "
            f"`sample_weight`. The error was: {error}"
        ) from error


def _shown(specs):
    return keras.tree.map_structure(
        lambda spec: f"{spec.dtype.name}{list(spec.shape)}", specs
    )


def _signature(name, concrete, arguments):
    """The same as `concrete`, with a name for each tensor that goes in or out."""
    specs: dict[str, Any] = {}
    for argument in sorted(arguments):  # As `keras.tree` goes through a dict.
        specs |= _named(argument, arguments[argument], prefixed=True)

    def function(**tensors):
        inputs = keras.tree.pack_sequence_as(arguments, [tensors[n] for n in specs])
        outputs = concrete(**inputs)
        return _named("output", outputs, prefixed=not isinstance(outputs, dict))

    if len(specs) != len(keras.tree.flatten(arguments)):
        raise ValueError(
            f"The model cannot be exported: the inputs of {name} must have different "
            f"names. Received: {arguments}"
        )
    specs = {k: tf.TensorSpec(v.shape, v.dtype, k) for k, v in specs.items()}
    return _trace(name, tf.function(function, autograph=False), specs)


def _named(name, structure, prefixed):
    """The tensors of a structure by names made of where they are in it."""
    leaves = keras.tree.flatten_with_path(structure)
    if len(leaves) == 1 and not isinstance(structure, dict):
        return {name: leaves[0][1]}
    return {
        "_".join(
            [name] * prefixed + [re.sub(r"\W", "_", str(key)) for key in path]
        ): leaf
        for path, leaf in leaves
    }


def _specs(argument, like):
    def spec(leaf):
        if isinstance(leaf, tf.TensorSpec):
            return tf.TensorSpec(leaf.shape, leaf.dtype)
        leaf = tf.convert_to_tensor(leaf)
        return tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype)

    try:
        specs = keras.tree.map_structure(spec, like)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `{argument}` must be an array, a tensor, a tf.TensorSpec or a "
            f"structure of them. Received: {argument}={like!r}"
        ) from error
    if any(leaf.shape.rank is None for leaf in keras.tree.flatten(specs)):
        raise ValueError(
            f"Argument `{argument}` must say how many dimensions there are. Received: "
            f"{argument}={like!r}"
        )
    return specs


def _input_specs(model):
    """What the model's inputs are like, where it knows them."""
    if isinstance(model, keras.Sequential):
        (inputs,) = model.inputs
    elif getattr(model, "inputs", None):
        inputs = model.input
    else:
        raise ValueError(
            "What a subclassed model takes must be said: export_trainable(model, path, "
            "x=a batch of it, or a tf.TensorSpec)."
        )
    for leaf in keras.tree.flatten(inputs):
        if getattr(leaf, "sparse", False) or getattr(leaf, "ragged", False):
            raise ValueError(
                "The model's inputs must be dense. Received: the sparse or ragged "
                f"input {leaf.name}"
            )
    return keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)


def _check_batch_size(batch_size, inputs):
    known = {leaf.shape[0] for leaf in keras.tree.flatten(inputs) if leaf.shape.rank}
    if type(batch_size) is not int or batch_size < 1 or known - {None, batch_size}:
        raise ValueError(
            "Argument `batch_size` must be an integer >= 1, and that of the model's "
            f"inputs where they have one. Received: batch_size={batch_size!r}, "
            f"x={_shown(inputs)}"
        )


def _target_specs(model, outputs):
    """What targets the model's losses take: a structure like its outputs, or None."""
    loss = model.loss
    if loss is None:
        return None
    if not keras.tree.is_nested(outputs):
        (loss,) = keras.tree.flatten(loss)
        return _target_spec(loss, outputs)
    if isinstance(loss, dict):
        if not isinstance(outputs, dict):
            outputs = dict(zip(model.output_names, keras.tree.flatten(outputs)))
        return {
            key: _target_spec(one, outputs[key])
            for key, one in loss.items()
            if one is not None and key in outputs
        }
    if keras.tree.is_nested(loss):
        pairs = zip(keras.tree.flatten(outputs), loss)
        return [_target_spec(one, output) for output, one in pairs if one is not None]
    return keras.tree.map_structure(lambda output: _target_spec(loss, output), outputs)


def _target_spec(loss, output):
    try:
        loss = keras.losses.get(loss)
    except ValueError as error:
        raise ValueError(
            f"What targets go with the loss {loss!r} must be said: "
            "export_trainable(model, path, y=a batch of them, or a tf.TensorSpec)."
        ) from error
    sparse = keras.losses.SparseCategoricalCrossentropy
    if isinstance(loss, sparse) or loss is keras.losses.sparse_categorical_crossentropy:
        return tf.TensorSpec(output.shape[:-1], tf.int64)
    dtype = keras.config.floatx() if output.dtype.is_floating else output.dtype
    return tf.TensorSpec(output.shape, dtype)


def _build_metrics(model, given, outputs):
    """Lets the model create its metrics, which it does when it first sees data."""
    if "y" not in given:
        return

    def zeros(spec):
        return tf.zeros([2 if n is None else n for n in spec.shape], spec.dtype)

    before = [(v, v.numpy()) for v in model.metrics_variables]
    data = {k: keras.tree.map_structure(zeros, v) for k, v in given.items()}
    data["y_pred"] = keras.tree.map_structure(zeros, outputs)
    data.setdefault("sample_weight", None)
    model._clear_losses()  # Those of layers are of the graph that made `outputs`.
    try:
        model.compute_loss(**data)
        model.compute_metrics(**data)
    except Exception as error:  # Whatever a loss raises.
        raise ValueError(
            f"The model cannot be exported: its loss or metrics do not take "
            f"y={_shown(given['y'])}. Tell `export_trainable` what targets are like "
            f"with the argument `y`. The error was: {error}"
        ) from error
    model.reset_metrics()
    for variable, value in before:
        variable.assign(value)


def _check_traced(signatures, known):
    """Raises an error if functions need what a SavedModel cannot hold."""
    known = {id(v) for v in known}
    for name, function in signatures.items():
        graph = function.graph.as_graph_def()
        for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
            for node in nodes:
                if node.op in _PYTHON_OPS:
                    raise ValueError(
                        "The model cannot be exported: it calls Python code (a "
                        f"tf.py_function or tf.numpy_function, {node.name} in {name}), "
                        "and a SavedModel has none."
                    )
        unknown = [v.name for v in function.graph.variables if id(v) not in known]
        if unknown:
            raise ValueError(
                "The model cannot be exported: it uses variables that are not its own, "
                f"{', '.join(unknown)} in {name}. Make them weights of a layer "
                "(add_weight) or of the optimizer."
            )


def _write_checkpoint(path, variables, description):
    """The operations that write variables to a checkpoint of TensorFlow's format."""
    index = tf.data.Dataset.from_tensors(tf.strings.join([path, ".index"]))
    there = index.map(tf.io.read_file).ignore_errors()
    taken = there.reduce(False, lambda *_: True)
    checks = [
        tf.debugging.Assert(
            path != "", ["The path of a checkpoint must not be empty."]
        ),
        tf.debugging.Assert(
            ~taken, ["A checkpoint is not overwritten. Save to another path than", path]
        ),
    ]
    with tf.control_dependencies(checks):
        operation = tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=[_DESCRIPTION, *variables],
            shape_and_slices=[""] * (1 + len(variables)),
            tensors=[description, *(v.read_value() for v in variables.values())],
        )
    return [operation]


def _read_checkpoint(path, variables, description):
    """The operations that give variables their values in a checkpoint."""
    dtypes = [v.dtype for v in variables.values()]
    found = _reading(path, [_DESCRIPTION], [tf.string])
    readable = tf.debugging.Assert(found != "", [path, _UNREADABLE])
    with tf.control_dependencies([readable]):
        same = tf.debugging.Assert(
            found == description,
            [path, "is the checkpoint of another model or optimizer. Expected",
             description, "Found", found],
        )  # fmt: skip
    with tf.control_dependencies([same]):
        found = _reading(path, [_DESCRIPTION, *variables], [tf.string, *dtypes])
        whole = tf.debugging.Assert(found != "", [path, _UNREADABLE])
    with tf.control_dependencies([whole]):
        values = _restored(path, list(variables), dtypes)
    values = [
        tf.ensure_shape(value, variable.shape)
        for value, variable in zip(values, variables.values())
    ]
    with tf.control_dependencies(values):  # All of them are there, or none is assigned.
        return [
            variable.assign(value, read_value=False)
            for value, variable in zip(values, variables.values())
        ]


def _reading(path, names, dtypes):
    """The first of the named strings and tensors of a checkpoint, "" if one fails.

    An error can be caught in a data set only, and must be: TensorFlow's own messages
    do not always name the file.
    """
    read = tf.data.Dataset.from_tensors(path).map(
        lambda path: _restored(path, names, dtypes)[0]
    )
    return read.ignore_errors(log_warning=True).reduce("", lambda _, found: found)


def _restored(path, names, dtypes):
    return tf.raw_ops.RestoreV2(
        prefix=path,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        dtypes=dtypes,
    )


@contextlib.contextmanager
def whole_folder(path):
    """Gives a temporary folder to make, which then takes the place of `path`.

    Its content is on the disk before the rename, and the rename is atomic: `path` is
    whole, or as it was.

    Args:
        path: Folder that does not exist, or is empty.

    Raises:
        FileExistsError: If it exists and is not an empty folder.
        OSError: If it cannot be written. Names it.
    """
    path = Path(os.path.abspath(path))
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"{path} exists. Export to a new or an empty folder, or move it away."
        )
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():  # Left by a process that was killed.
            shutil.rmtree(temporary)
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _sync(file)
        os.replace(temporary, path)
        _sync(path.parent)
    except _WRITE_ERRORS as error:
        raise OSError(f"Cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path):
    """The folder beside a folder where that is made, or deleted."""
    return path.with_name(_TEMPORARY_PREFIX + path.name)


def _sync(path):
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
