"""State goes to the variables it belongs to; a warning says what is not restored."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
from oracle import METHODS, Oracle

import svag_tf
from svag_tf.saving import stores
from svag_tf.saving.identities import Identity, matched
from svag_tf.saving.mismatch import all_or_error
from svag_tf.saving.optimizer_state import _assign

tf = pytest.importorskip("tensorflow")

SHAPES = {"kernel": (3, 2), "second": (3, 2), "bias": (2,)}
WAYS = ("checkpoint", "checkpoint, not built", "store", "store, not built")
CLASSES = sorted({method.cls for method in METHODS.values()})
OURS = svag_tf.OptimizerStateWarning


def variables(*names):
    return [
        keras.Variable(np.full(SHAPES[name], i + 1.0, "float32"), name=name)
        for i, name in enumerate(names or SHAPES)
    ]


def gradient(step, name, shape):
    seed = [step, list(SHAPES).index(name)]
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def step(optimizer, build_on, number):
    """Makes a step whose gradients depend only on the variable's name and the step."""
    optimizer.apply(
        [keras.ops.array(gradient(number, v.name, v.shape)) for v in build_on], build_on
    )


def make(build_on=None, cls="MSVAG", steps=0, **arguments):
    """An optimizer built on variables, after some steps."""
    module = svag_tf if hasattr(svag_tf, cls) else keras.optimizers
    optimizer = getattr(module, cls)(0.1, **arguments)
    if build_on is not None:
        optimizer.build(build_on)
    for number in range(steps):
        step(optimizer, build_on, number)
    return optimizer


class Saved:
    """The state of an optimizer, saved for both ways."""

    def __init__(self, optimizer, folder):
        checkpoint = tf.train.Checkpoint(optimizer=optimizer)
        self.checkpoint = checkpoint.write(str(folder / "checkpoint"))
        self.store = {}
        optimizer.save_own_variables(self.store)

    def restore(self, way, optimizer, build_on):
        """Restores it, and returns the texts of our warnings."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if "not built" not in way:
                optimizer.build(build_on)
            if way.startswith("checkpoint"):
                tf.train.Checkpoint(optimizer=optimizer).restore(self.checkpoint)
            else:
                optimizer.load_own_variables(self.store)
            optimizer.build(build_on)
        return [str(w.message) for w in seen if issubclass(w.category, OURS)]


def numbers(optimizer):
    return [v.numpy() for v in optimizer.variables]


def state_of(optimizer, name):
    """Returns an optimizer's state for the variable of a name."""
    path = next(v.name for v in optimizer._trainable_variables if v.name == name)
    i = [v.name for v in optimizer._trainable_variables].index(path)
    kinds = {kind: getattr(optimizer, kind)[i].numpy() for kind in optimizer.slots}
    kinds["t"] = optimizer.update_counts.numpy()[i]
    if optimizer.use_ema:
        kinds["average"] = optimizer._model_variables_moving_average[i].numpy()
        kinds["has_average"] = optimizer.has_average.numpy()[i]
    return kinds


def assert_same(a, b):
    assert a.keys() == b.keys()
    for kind in a:
        np.testing.assert_array_equal(a[kind], b[kind], err_msg=kind)


@pytest.fixture
def original():
    return make(variables(), steps=2)


@pytest.fixture
def saved(original, tmp_path):
    return Saved(original, tmp_path)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "names",
    [
        ("kernel", "second", "bias"),
        ("bias", "second", "kernel"),
        ("bias",),
        ("second", "kernel"),
    ],
    ids="-".join,
)
def test_restored_by_path(way, names, cls, tmp_path):
    """In any order; variables that the model no longer has are left out."""
    original = make(variables(), cls, steps=2)
    optimizer, here = make(cls=cls), variables(*names)
    said = Saved(original, tmp_path).restore(way, optimizer, here)
    assert len(said) == (len(names) < 3)
    if said:
        assert "does not train it: " in said[0] and "kernel" in said[0]
    assert int(optimizer.iterations) == 2
    for name in names:
        assert_same(state_of(optimizer, name), state_of(original, name))
    theirs = original._trainable_variables
    before = [v.numpy() for v in theirs], [v.numpy() for v in here]
    step(optimizer, here, 2)
    step(original, theirs, 2)
    for i, variable in enumerate(here):
        j = [v.name for v in theirs].index(variable.name)
        moved = before[1][i] - variable.numpy()
        expected = before[0][j] - theirs[j].numpy()
        np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", ["MSVAG", "SVAG", "MSVAS", "MSGD"])
def test_what_the_file_does_not_know_starts_afresh(way, cls, tmp_path):
    """At t = 1, also if its path is known and its shape another."""
    known = variables("kernel")
    optimizer = make(cls=cls, use_ema=True)
    new = keras.Variable(np.ones(4, "float32"), name="bias")
    here = [new, variables("kernel")[0]]
    original = make([known[0], variables("bias")[0]], cls, steps=3, use_ema=True)
    (said,) = Saved(original, tmp_path).restore(way, optimizer, here)
    assert "Restored: kernel." in said
    assert "bias (its shape is (4,), in the file (2,))" in said
    assert_same(state_of(optimizer, "kernel"), state_of(original, "kernel"))
    variant = {"MSVAS": "msvas_gaussian"}.get(cls, cls.lower())
    oracle = Oracle(variant, 0.1, 0.9, (4,))
    expected = np.ones(4)
    for number in range(3, 6):
        step(optimizer, here, number)
        expected = expected - oracle.update(gradient(number, "bias", (4,)))
        np.testing.assert_allclose(new.numpy(), expected, 1e-5, 1e-6)
        if number == 3:  # The average of the weights begins here too.
            average = optimizer._model_variables_moving_average[0].numpy()
            np.testing.assert_array_equal(average, new.numpy())
    assert optimizer.update_counts.numpy().tolist() == [3, 6]


@pytest.mark.parametrize("way", ["checkpoint", "store"])
def test_what_starts_afresh_forgets_what_it_was(way, original, tmp_path):
    """An optimizer that has made updates keeps none of them for other weights."""
    saved = Saved(make(variables("bias"), steps=4), tmp_path)
    saved.restore(way, original, original._trainable_variables)
    assert original.update_counts.numpy().tolist() == [0, 0, 4]
    for name in ("kernel", "second"):
        assert not any(np.any(a) for a in state_of(original, name).values())
    assert int(original.iterations) == 4


@pytest.mark.parametrize("way", WAYS)
def test_same_variables_of_a_later_process(way, tmp_path):
    """The numbers in Keras' automatic names make no difference."""

    def unnamed():
        return [keras.Variable(np.ones(shape, "float32")) for shape in SHAPES.values()]

    original = make()
    theirs = unnamed()
    original.build(theirs)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        original.apply([keras.ops.array(rng.normal(size=v.shape)) for v in theirs])
    saved = Saved(original, tmp_path)
    optimizer = make()
    assert saved.restore(way, optimizer, unnamed()) == []
    for a, b in zip(numbers(optimizer), numbers(original), strict=True):
        np.testing.assert_array_equal(a, b)
    a, b, c = unnamed()
    optimizer = make()
    assert saved.restore(way, optimizer, [b, a, c]) == []
    for i, j in ((0, 1), (1, 0), (2, 2)):
        np.testing.assert_array_equal(optimizer.m_tilde[i], original.m_tilde[j])


def identities(*paths, known=True):
    """Of variables of one shape, in a model whose paths are the second of each pair.

    A third is the token of an object.
    """
    return [Identity(a, b if known else None, [2], *token) for a, b, *token in paths]


A, B, C = ("dense", "dense"), ("dense_1", "dense_1"), ("dense_2", "dense_2")
HEAD = ("head/kernel", "head/kernel")
LATER_A, LATER_B = ("dense_7", "dense"), ("dense_8", "dense_1")


@pytest.mark.parametrize(
    "there, here, expected",
    [
        # With the models known, numbers count from the first layer, frozen or not.
        (identities(B), identities(LATER_A, LATER_B), {1: 0}),
        (identities(B), identities(LATER_A), {}),
        (identities(A, B), identities(LATER_B), {0: 1}),
        # Beside the same objects, others are new, unless their name was chosen.
        (identities((*B, "b"), (*C, "c")), identities((*A, "a"), (*C, "c")), {1: 1}),
        (identities((*C, "c"), (*HEAD, "a")), identities((*C, "c"), (*HEAD, "b")),
         {0: 0, 1: 1}),
        # If not, all paths must agree, or single ones be identical.
        (identities(A, B, known=False), identities(LATER_A, LATER_B), {0: 0, 1: 1}),
        (identities(B, known=False), identities(LATER_A, LATER_B), {}),
        (identities(A, B, C, known=False), identities(B, C), {0: 1, 1: 2}),
        # Equally many of one name are matched in order.
        (identities(A, A), identities(A, A), {0: 0, 1: 1}),
        (identities(A, A), identities(A), {}),
    ],
)  # fmt: skip
def test_matched(there, here, expected):
    assert matched(there, here) == expected


KINDS = [
    ({}, {"use_ema": True}, "Not in the file: the averages of the weights"),
    ({"use_ema": True}, {}, "Not restored: the averages of the weights"),
    ({"gradient_accumulation_steps": 2}, {}, "Not restored: half-accumulated"),
    ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 3},
     "Not restored: half-accumulated"),
    ({}, {"gradient_accumulation_steps": 2}, "Not in the file: half-accumulated"),
    ({"sparse_updates": "lazy"}, {}, None),
    ({}, {"sparse_updates": "lazy"}, None),
    ({"state_dtype": "float64"}, {}, None),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("there, here, message", KINDS, ids=str)
def test_other_kinds_of_state(there, here, message, way, tmp_path):
    original = make(variables(), steps=3, **there)
    optimizer = make(**here)
    said = Saved(original, tmp_path).restore(way, optimizer, variables())
    assert len(said) == (message is not None)
    assert all(message in text for text in said)
    for i in range(3):
        np.testing.assert_allclose(
            optimizer.m_tilde[i].numpy(), original.m_tilde[i].numpy(), 1e-6
        )
    np.testing.assert_array_equal(
        optimizer.update_counts.numpy(), original.update_counts.numpy()
    )
    if optimizer.counts_rows:
        assert optimizer.row_update_counts[0].numpy().tolist() == [3, 3, 3]
    steps = here.get("gradient_accumulation_steps")
    if steps:  # No partially accumulated gradient is left.
        assert int(optimizer._iterations) % steps == 0
        for accumulated in optimizer._accumulated_gradients:
            assert not accumulated.numpy().any()


@pytest.mark.parametrize("way", WAYS)
def test_half_accumulated_gradient_goes_on(way, tmp_path):
    arguments = {"gradient_accumulation_steps": 3}
    original = make(variables(), steps=4, **arguments)
    optimizer, here = make(**arguments), variables()
    assert Saved(original, tmp_path).restore(way, optimizer, here) == []
    for a, b in zip(numbers(optimizer), numbers(original), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", ["Adam", "SGD", "Lion", "MSVAS", "MSGD"])
@pytest.mark.parametrize("cls", ["MSVAG", "SSD"])
def test_state_of_another_class_is_left_out(way, other, cls, tmp_path):
    """With a warning; the optimizer is a new one."""
    saved = Saved(make(variables(), other, steps=2), tmp_path)
    optimizer = make(cls=cls)
    (said,) = saved.restore(way, optimizer, variables())
    assert "another class" in said and "starts afresh" in said
    assert int(optimizer.iterations) == 0
    for value in numbers(optimizer)[2:]:
        assert not value.any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "arguments, names",
    [
        ({}, ("kernel", "second")),
        ({"cls": "MSVAS"}, ()),
        ({"use_ema": True}, ()),
        ({"gradient_accumulation_steps": 2}, ()),
    ],
    ids=str,
)
def test_resuming_is_all_or_an_error(saved, way, arguments, names):
    """Before anything is changed; the optimizer can be used afterwards."""
    optimizer, build_on = make(**arguments), variables(*names)
    with all_or_error(), pytest.raises(ValueError, match="optimizer"):
        saved.restore(way, optimizer, build_on)
    if not optimizer.built:
        optimizer.build(build_on)
    for value in numbers(optimizer)[2:]:
        assert not value.any()
    for i, variable in enumerate(build_on):
        assert (variable.numpy() == i + 1).all()
    step(optimizer, build_on, 0)
    assert optimizer.update_counts.numpy().max() <= 1


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    "names, consumed",
    [
        ((), True),
        (("bias", "kernel", "second"), True),
        (("kernel", "second"), False),
        (("kernel", "second", "bias", "second"), False),
    ],
    ids=str,
)
def test_assert_consumed(saved, names, consumed, built):
    """TensorFlow's own check that a checkpoint is restored as a whole."""
    optimizer, here = make(), variables(*names)
    if built:
        optimizer.build(here)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OURS)
        status = checkpoint.read(saved.checkpoint)
        optimizer.build(here)
    if consumed:
        status.assert_consumed()
    else:
        with pytest.raises(AssertionError):
            status.assert_consumed()


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("other", ["Adam", "SGD", "LossScaleOptimizer"])
def test_another_optimizer_refuses_our_checkpoint(saved, other, built):
    """It would restore the step count as its own, and silently ignore the slots."""
    if other == "LossScaleOptimizer":
        optimizer = keras.optimizers.LossScaleOptimizer(make())
    else:
        optimizer = make(cls=other)
    if built:
        optimizer.build(variables())
    with pytest.raises(tf.errors.InvalidArgumentError, match="an_optimizer_of_svag_tf"):
        tf.train.Checkpoint(optimizer=optimizer).restore(saved.checkpoint)
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("way", WAYS)
def test_saved_before_it_was_built(way, tmp_path):
    """So is one that has made no updates; another starts afresh."""
    saved = Saved(make(), tmp_path)
    optimizer = svag_tf.MSVAG(0.3)
    assert saved.restore(way, optimizer, variables()) == []
    assert float(optimizer.learning_rate) == np.float32(0.1)
    for value in numbers(optimizer)[2:]:
        assert not value.any()
    if "not built" not in way:
        optimizer = make(variables(), steps=1)
        (said,) = saved.restore(way, optimizer, optimizer._trainable_variables)
        assert "Starts afresh" in said
        assert not optimizer.update_counts.numpy().any()


@pytest.mark.parametrize("way", WAYS)
def test_schedule_in_place_of_a_number(saved, original, way):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = svag_tf.MSVAG(schedule)
    (said,) = saved.restore(way, optimizer, variables())
    assert "Not restored: the learning rate, which is a schedule here" in said
    assert_same(state_of(optimizer, "kernel"), state_of(original, "kernel"))


@pytest.mark.parametrize("way", WAYS)
def test_scalars_are_restored_at_once(saved, way):
    """Reading them before `build` returns the saved values."""
    optimizer = svag_tf.MSVAG(0.3)
    if way.startswith("checkpoint"):
        tf.train.Checkpoint(optimizer=optimizer).restore(saved.checkpoint)
    else:
        optimizer.load_own_variables(saved.store)
    assert int(optimizer.iterations) == 2
    assert float(optimizer.learning_rate) == np.float32(0.1)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_set_after_loading_stays(saved, way):
    """Also if the optimizer is built later, or saved again before."""
    optimizer = svag_tf.MSVAG(0.3)
    if "not built" not in way:
        optimizer.build(variables())
    if way.startswith("checkpoint"):
        tf.train.Checkpoint(optimizer=optimizer).restore(saved.checkpoint)
    else:
        optimizer.load_own_variables(saved.store)
    optimizer.learning_rate = 0.5
    optimizer.iterations.assign(7)
    store, again = {}, svag_tf.MSVAG(0.3)
    if way.startswith("store"):
        optimizer.save_own_variables(store)
        again.load_own_variables(store)
    else:
        again = optimizer
    for each in (optimizer, again):
        each.build(variables())
        assert float(each.learning_rate) == 0.5
        assert int(each.iterations) == 7
        assert each.update_counts.numpy().tolist() == [2, 2, 2]


@pytest.mark.parametrize("way", ["checkpoint", "store"])
def test_a_refusal_at_build_takes_back_what_was_restored(saved, way):
    """Except what was set in between; the fresh optimizer can be used."""
    for set_between in (False, True):
        optimizer, other = svag_tf.MSVAG(0.3), variables("bias")
        for _ in range(2):
            if way == "checkpoint":
                tf.train.Checkpoint(optimizer=optimizer).restore(saved.checkpoint)
            else:
                optimizer.load_own_variables(saved.store)
        if set_between:
            optimizer.iterations.assign(7)
        with warnings.catch_warnings(), pytest.raises(OURS):
            warnings.simplefilter("error")
            optimizer.build(other)
        assert int(optimizer.iterations) == (7 if set_between else 0)
        assert float(optimizer.learning_rate) == np.float32(0.3)
        step(optimizer, other, 0)
        assert_same(state_of(optimizer, "bias"), state_of(make(other, steps=1), "bias"))


def test_a_count_beyond_its_variable_is_its_largest():
    variable = keras.Variable([0, 0], dtype="int32")
    _assign(variable, np.array([2**31 + 5, 7]))
    assert variable.numpy().tolist() == [2**31 - 1, 7]


@pytest.mark.parametrize("built_between", [False, True])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_keep_the_state(original, copied, built_between):
    """Until they are built on variables of the same paths; a copy of a copy too."""
    first = copied(original)
    if built_between:
        first.build(variables())
    optimizer = copied(first)
    optimizer.build(variables())
    for a, b in zip(numbers(optimizer), numbers(original), strict=True):
        np.testing.assert_array_equal(a, b)


class WithMore(svag_tf.MSVAG):
    """A subclass with variables of its own."""

    def build(self, variables):
        super().build(variables)
        if not hasattr(self, "steps_of_norm"):
            self.steps_of_norm = self.add_variable((), name="steps_of_norm")

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self.steps_of_norm.assign_add(1.5)


@pytest.mark.parametrize("way", WAYS)
def test_variables_of_a_subclass_are_restored(way, tmp_path):
    original = WithMore(0.1)
    original.build(variables())
    step(original, original._trainable_variables, 0)
    optimizer = WithMore(0.1)
    assert Saved(original, tmp_path).restore(way, optimizer, variables()) == []
    assert float(optimizer.steps_of_norm) == 1.5


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_damaged_store(cls, built, tmp_path):
    """A `.weights.h5` file has no checksum of its own: all that we save has ours."""
    store = Saved(make(variables(), cls, steps=2), tmp_path).store
    optimizer = make(variables() if built else None, cls)
    before = numbers(optimizer)
    for key in store:
        content = np.ascontiguousarray(store[key]).tobytes()
        places = range(len(content)) if key == stores.RECORD else [0]
        for i in places:
            value = np.frombuffer(content, np.uint8).copy()
            value[i] ^= 1
            value = value.view(store[key].dtype).reshape(store[key].shape)
            with pytest.raises(ValueError, match="is damaged"):
                optimizer.load_own_variables({**store, key: value})
    for a, b in zip(numbers(optimizer), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_store_of_another_version(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(stores, "FORMAT", stores.FORMAT + 1)
        saved = Saved(make(variables(), steps=2), tmp_path)
    with pytest.warns(OURS, match="another version of svag_tf"):
        make(variables()).load_own_variables(saved.store)


def model_of(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


@pytest.mark.parametrize("steps", [0, 2])
def test_built_by_its_first_step(steps, tmp_path):
    """The build is in a graph, and must not load the state at every step."""
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    model, other = model_of(svag_tf.MSVAG()), model_of(svag_tf.MSVAG())
    for _ in range(steps):
        model.train_on_batch(x, y)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    for _ in range(3):
        model.train_on_batch(x, y)
        other.train_on_batch(x, y)
    found, expected = numbers(other.optimizer), numbers(model.optimizer)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def scaled_model(module, cls="MSVAG"):
    return model_of(module.LossScaleOptimizer(getattr(svag_tf, cls)(), 8.0, 2))


def trained(model, steps=3):
    for _ in range(steps):
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    return model


LOSS_SCALING = pytest.mark.parametrize(
    "module", [keras.optimizers, svag_tf.distribution]
)


@LOSS_SCALING
def test_loss_scale_optimizer_around_another_class(module, tmp_path):
    model = trained(scaled_model(module, "MSSD"))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    other = scaled_model(module, "MSGD")
    other.optimizer.build(other.trainable_variables)
    with pytest.warns(OURS, match="MSSD.* starts afresh"):
        other.load_weights(path)
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])
    assert not other.optimizer.inner_optimizer.update_counts.numpy().any()


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.filterwarnings("error::svag_tf.OptimizerStateWarning")
@LOSS_SCALING
@pytest.mark.parametrize("way", ["weights.h5", "checkpoint"])
def test_loss_scale_optimizer_that_is_not_built(way, module, tmp_path):
    """Keras' own skips its scale with a warning; ours restores it at `build`."""
    model = trained(scaled_model(module))
    other = scaled_model(module)
    if way == "checkpoint":
        checkpoint = tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
        tf.train.Checkpoint(other).restore(checkpoint)
    else:
        model.save_weights(tmp_path / "model.weights.h5")
        other.load_weights(tmp_path / "model.weights.h5")
    other.optimizer.build(other.trainable_variables)
    found, expected = numbers(other.optimizer), numbers(model.optimizer)
    own = 4 if way == "weights.h5" and module is keras.optimizers else 0
    for a, b in zip(found[own:], expected[own:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.filterwarnings("error::svag_tf.OptimizerStateWarning")
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("there", [None, keras.optimizers, svag_tf.distribution])
@pytest.mark.parametrize("here", [None, keras.optimizers, svag_tf.distribution])
def test_files_with_and_without_loss_scaling(there, here, built, tmp_path):
    def make_model(module):
        return model_of(svag_tf.MSVAG()) if module is None else scaled_model(module)

    model, other = trained(make_model(there)), make_model(here)
    if built:
        other.optimizer.build(other.trainable_variables)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    other.optimizer.build(other.trainable_variables)
    inner = [
        getattr(m.optimizer, "inner_optimizer", m.optimizer) for m in (model, other)
    ]
    for a, b in zip(*map(numbers, inner), strict=True):
        np.testing.assert_array_equal(a, b)
    assert inner[1].update_counts.numpy().tolist() == [3, 3]
    trained(other)


def test_untrained_model_in_a_file(tmp_path):
    model_of(svag_tf.MSVAG()).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))


def test_random_state_needs_one_of_our_optimizers():
    with pytest.raises(ValueError, match="an optimizer of svag_tf"):
        svag_tf.keep_random_state(model_of("adam"))


def test_files_run_no_code(tmp_path):
    """Keras' safe mode stays on: a Lambda layer in a foreign file is refused."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"[Ll]ambda"):
        keras.models.load_model(tmp_path / "model.keras")


@pytest.fixture
def manager(tmp_path):
    """Of three checkpoints, after 1, 2 and 3 steps."""
    optimizer = make(variables())
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), 3)
    for step in range(3):
        gradients = [np.full(v.shape, step + 1.0) for v in optimizer.m_tilde]
        optimizer.apply([tf.constant(g, tf.float32) for g in gradients])
        manager.save()
    return manager


def damage(path, position, kind):
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[position] ^= 1 << position % 8
    path.write_bytes(content[:position] if kind == "cut" else flipped)
    return content


@pytest.mark.parametrize("kind", ["cut", "flip"])
@pytest.mark.parametrize("file", ["ckpt-3.index", "ckpt-3.data-00000-of-00001"])
@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_the_one_before_a_damaged_checkpoint(manager, tmp_path, kind, file):
    """At any byte: the one before, or the same if the byte does not matter."""
    path = tmp_path / file
    optimizer = manager.checkpoint.optimizer
    last = numbers(optimizer)
    found = []
    for position in np.linspace(0, path.stat().st_size - 1, 60).astype(int):
        content = damage(path, position, kind)
        restored = svag_tf.restore_latest(manager)
        found.append(int(optimizer.iterations))
        assert restored == str(tmp_path / f"ckpt-{found[-1]}")
        if found[-1] == 3:
            for a, b in zip(numbers(optimizer), last):
                np.testing.assert_array_equal(a, b)
        path.write_bytes(content)
    assert set(found) <= {2, 3} and found.count(2) >= 50


def test_damaged_checkpoints_are_named(manager, tmp_path):
    for number in (3, 2):
        damage(tmp_path / f"ckpt-{number}.data-00000-of-00001", 5, "cut")
    (tmp_path / "checkpoint").write_text("damaged as well")
    again = tf.train.CheckpointManager(manager.checkpoint, str(tmp_path), 3)
    with pytest.warns(UserWarning, match=r"ckpt-[23] is damaged") as warned:
        assert svag_tf.restore_latest(again) == str(tmp_path / "ckpt-1")
    assert len([w for w in warned if "is damaged" in str(w.message)]) == 2
    damage(tmp_path / "ckpt-1.index", 5, "cut")
    with (
        pytest.warns(UserWarning, match="ckpt-1 is damaged"),
        pytest.raises(
            ValueError, match=r"None of these checkpoints is whole: .*ckpt-3"
        ),
    ):
        svag_tf.restore_latest(again)


def test_no_checkpoints(tmp_path):
    checkpoint = tf.train.Checkpoint(optimizer=make(variables()))
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), 3)
    assert svag_tf.restore_latest(manager) is None


@pytest.mark.parametrize("built", [False, True])
def test_a_checkpoint_of_another_model_changes_nothing(built, tmp_path):
    def made(units):
        layers = [keras.layers.Dense(4, name="a"), keras.layers.Dense(units, name="b")]
        model = keras.Sequential([keras.Input((3,)), *layers])
        model.compile(svag_tf.MSVAG(0.1), "mse")
        return model

    there, here = made(1), made(2)
    x = np.ones((4, 3))
    there.fit(x, x[:, :1], verbose=0)
    tf.train.CheckpointManager(tf.train.Checkpoint(there), str(tmp_path), 3).save()
    if built:
        here.fit(x, x[:, :2], verbose=0)
    before = here.get_weights(), int(here.optimizer.iterations)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(here), str(tmp_path), 3)
    with pytest.raises(ValueError, match="was restored in part"):
        svag_tf.restore_latest(manager)
    for a, b in zip(here.get_weights(), before[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(here.optimizer.iterations) == before[1]
    here.fit(x, x[:, :2], verbose=0)
    assert set(here.optimizer.update_counts.numpy()) == {before[1] + 1}
