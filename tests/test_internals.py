"""What the package uses of Keras and TensorFlow beyond their public API.

These tests say what a new version has taken away, before others fail in odd ways.
"""

import ast
import functools
import inspect
import itertools
import re
import sys
import tempfile
from pathlib import Path

import keras
import pytest

import svag_tf
from svag_tf import internals

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("most of it is TensorFlow's", allow_module_level=True)

PACKAGE = Path(svag_tf.__file__).parent
INTERNALS = PACKAGE / "internals.py"


@functools.cache
def optimizer():
    """One of Keras' own, with all that an optimizer can have."""
    made = keras.optimizers.SGD(0.1, use_ema=True, gradient_accumulation_steps=2)
    made.build([keras.Variable([1.0])])
    return made


def output_with_a_mask():
    layer = keras.layers.Embedding(2, 1, mask_zero=True)
    return layer(keras.ops.convert_to_tensor([[1, 0]]))


@functools.cache
def traced_function():
    """Traced for an iterator, like Keras' training step."""
    function = tf.function(lambda iterator: next(iterator))
    function(iter(tf.data.Dataset.from_tensors(1.0)))
    return function


def spec_of_an_iterator():
    (concrete,) = internals.concrete_functions(traced_function())
    return concrete.structured_input_signature[0][0]


def entry_of_a_file():
    """What Keras passes to a layer to save its variables."""
    entries = []

    class Layer(keras.layers.Layer):
        def save_own_variables(self, store):
            entries.append(store)

    model = keras.Sequential([keras.Input((1,)), Layer()])
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/file.weights.h5")
    return entries[0]


@functools.cache
def waiting_value():
    """A number of a checkpoint that was read before the optimizer was built."""
    saved, empty = svag_tf.MSVAG(), svag_tf.MSVAG()
    saved.build([keras.Variable([1.0])])
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(optimizer=saved).write(f"{folder}/checkpoint")
        tf.train.Checkpoint(optimizer=empty).read(path)
        return internals.waiting_value(empty, "m_tilde/0")


PYTHON_STATE = tf.train.experimental.PythonState
# Name -> what has it.
OWNERS = {
    "_DefaultDistributionStrategy": lambda: sys.modules[
        type(tf.distribute.get_strategy()).__module__
    ],
    "_accumulated_gradients": optimizer,
    "_apply_weight_decay": optimizer,
    "_backend_increment_gradient_accumulators": optimizer,
    "_backend_update_step": optimizer,
    "_clip_gradients": optimizer,
    "_deferred_dependencies": optimizer,
    "_element_spec": spec_of_an_iterator,
    "_flatten_layers": keras.Model,
    "_get_variable_index": optimizer,
    "_h5_entry_path": entry_of_a_file,
    "_in_multi_worker_mode": lambda: (
        tf.distribute.MultiWorkerMirroredStrategy().extended
    ),
    "_initial_epoch": keras.Model,
    "_iterations": optimizer,
    "_keras_mask": output_with_a_mask,
    "_layout": lambda: keras.Variable([1.0]),
    "_learning_rate": optimizer,
    "_list_all_concrete_functions_for_serialization": traced_function,
    "_lookup_dependency": optimizer,
    "_make_function": keras.Model,
    "_maybe_symbolic_build": keras.Model,
    "_model_variables_moving_average": optimizer,
    "_moments": keras.layers.BatchNormalization,
    "_overwrite_model_variables_with_average_value": optimizer,
    "_restore_from_tensors": lambda: PYTHON_STATE,
    "_serialize_to_tensors": lambda: PYTHON_STATE,
    "_trackable_children": optimizer,
    "_trainable_variables": optimizer,
    "_update_model_variables_moving_average": optimizer,
    "_update_uid": optimizer,
    "_use_weight_decay": optimizer,
    "_variables": optimizer,
    # Of modules and classes that TensorFlow does not document.
    "RequiresUniqueFunctionRetracing": lambda: (
        internals.xla_contexts().XLAControlFlowContext
    ),
    "XLAControlFlowContext": internals.xla_contexts,
    "get_enclosing_xla_context": internals.xla_contexts,
    "bind_object": waiting_value,
    "restore": waiting_value,
    "restore_uid": waiting_value,
    "value_tensors": waiting_value,
}


@pytest.mark.parametrize("name", OWNERS)
def test_keras_and_tensorflow_still_have_it(name):
    arguments = inspect.signature(keras.Variable).parameters
    if name == "_layout" and "layout" not in arguments:
        pytest.skip("older versions of Keras have it for JAX alone")
    try:
        owner = OWNERS[name]()
        has_it = hasattr(owner, name)
    except AttributeError as error:  # What has it cannot even be made without.
        owner, has_it = error, False
    assert has_it, (
        f"Keras {keras.__version__} or TensorFlow {tf.__version__} has taken `{name}` "
        f"away: {owner}. Find another way in svag_tf/internals.py"
    )


class Spy(keras.optimizers.Adam):
    """Records the models on the call stack while it is built."""

    found = ()

    def build(self, variables):
        self.found = list(internals.models_on_stack())
        super().build(variables)


@functools.cache
def trained_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(Spy(), "mse")
    model.fit(keras.ops.ones((2, 1)), keras.ops.ones((2, 1)), verbose=0)
    return model


# What the package finds in other ways than by a name of its own.
FOUND = {
    "what the training step was traced to": lambda model: list(
        internals.training_steps(model)
    ),
    "the model in a function on the call stack": lambda model: (
        model in model.optimizer.found
    ),
    "Adam's averages": lambda model: (
        [len(each) for each in internals.averages_of_adam(model.optimizer)] == [2, 2]
    ),
    "the state of the shared random generator": lambda model: (
        internals.SEED in internals.shared_seed().name
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_it_is_still_found(what):
    assert FOUND[what](trained_model()), (
        f"Keras {keras.__version__} or TensorFlow {tf.__version__} keeps {what} "
        "somewhere else. Find another way in svag_tf/internals.py"
    )


def is_private(name):
    return isinstance(name, str) and re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


HOOKS = [
    (cls, base, name)
    for cls, base in (
        (internals.HookedOptimizer, keras.optimizers.Optimizer),
        (internals.StringState, PYTHON_STATE),
    )
    for name in vars(cls)
    if name in OWNERS
]


@pytest.mark.parametrize("cls, base, name", HOOKS)
def test_hooks_are_called_with_the_same_arguments(cls, base, name):
    ours, theirs = (
        list(inspect.signature(getattr(each, name)).parameters) for each in (cls, base)
    )
    assert ours == theirs, (
        f"Keras {keras.__version__} or TensorFlow {tf.__version__} has changed the "
        f"arguments of `{name}`: change svag_tf/internals.py"
    )


def nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def private_names(path):
    """Private names that a file reads, defines or has as a text."""
    fields = ("attr", "name", "value")
    names = {getattr(node, f, None) for node in nodes(path) for f in fields}
    return set(filter(is_private, names))


def test_all_names_are_checked():
    public = {"_getframe"}
    assert private_names(INTERNALS) - public == set(filter(is_private, OWNERS))


def test_no_other_module_uses_a_private_name():
    """That is, one that no class of the package defines or sets."""
    files = {path: nodes(path) for path in PACKAGE.rglob("*.py") if path != INTERNALS}
    known = {"_asdict", "_exit", "_fields", "_replace"}  # Public ones.
    for node in itertools.chain(*files.values()):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            known.add(node.attr)
        if isinstance(node, ast.ClassDef):
            known |= {getattr(each, "name", None) for each in node.body}
            known |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    for path, each in files.items():
        used = {node.attr for node in each if isinstance(node, ast.Attribute)}
        for node in each:
            if isinstance(node, ast.Call) and "attr" in ast.unparse(node.func):
                used |= {getattr(argument, "value", None) for argument in node.args}
        assert not set(filter(is_private, used)) - known, path


def test_no_other_class_overrides_a_private_method():
    def is_ours(cls):
        return cls.__module__.startswith("svag_tf")

    classes = {
        value
        for name, module in list(sys.modules.items())
        if name.startswith("svag_tf")
        for value in vars(module).values()
        if isinstance(value, type) and is_ours(value)
    }
    assert svag_tf.MSVAG in classes
    for cls in classes:
        if cls.__module__ == internals.__name__:
            continue
        theirs = {n for c in cls.__mro__ if not is_ours(c) for n in vars(c)}
        names = theirs & set(filter(is_private, vars(cls))) - {"_abc_impl"}
        assert not names, cls
