"""What is saved is restored into what it was saved from, or refused: never mixed up."""

import keras
import numpy as np
import pytest

import svag_tf

tf = pytest.importorskip("tensorflow")

SHAPES = {"kernel": (3, 2), "second": (3, 2), "bias": (2,)}
WAYS = ("checkpoint", "checkpoint, not built", "store", "store, not built")
CLASSES = ("MSVAG", "SVAG", "MSSD", "SSD", "MSVAS", "SVAS", "MSGD")


def variables(*names):
    return [
        keras.Variable(np.full(SHAPES[name], i + 1.0, "float32"), name=name)
        for i, name in enumerate(names or SHAPES)
    ]


def make(build_on=None, cls="MSVAG", steps=0, **arguments):
    """An optimizer built on variables, after some steps with different gradients."""
    module = svag_tf if hasattr(svag_tf, cls) else keras.optimizers
    optimizer = getattr(module, cls)(0.1, **arguments)
    if build_on is not None:
        optimizer.build(build_on)
    for step in range(steps):
        optimizer.apply(
            [
                keras.ops.convert_to_tensor(
                    np.random.default_rng([step, i]).normal(size=v.shape), "float32"
                )
                for i, v in enumerate(build_on)
            ]
        )
    return optimizer


class Saved:
    """The state of an optimizer, saved for both ways."""

    def __init__(self, optimizer, folder):
        checkpoint = tf.train.Checkpoint(optimizer=optimizer)
        self.checkpoint = checkpoint.write(str(folder / "checkpoint"))
        self.store = {}
        optimizer.save_own_variables(self.store)

    def restore(self, way, optimizer, build_on):
        if "not built" not in way:
            optimizer.build(build_on)
        if way.startswith("checkpoint"):
            tf.train.Checkpoint(optimizer=optimizer).restore(self.checkpoint)
        else:
            optimizer.load_own_variables(self.store)
        optimizer.build(build_on)


def numbers(optimizer):
    return [v.numpy() for v in optimizer.variables]


@pytest.fixture
def saved(tmp_path):
    return Saved(make(variables(), steps=2), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_same_variables_of_a_later_process(way, tmp_path):
    """Keras numbers names that it gives itself: that makes no difference."""

    def unnamed():
        return [keras.Variable(np.ones(shape, "float32")) for shape in SHAPES.values()]

    original = make(unnamed(), steps=2)
    saved = Saved(original, tmp_path)
    optimizer = make()
    saved.restore(way, optimizer, unnamed())
    for a, b in zip(numbers(optimizer), numbers(original), strict=True):
        np.testing.assert_array_equal(a, b)
    a, b, c = unnamed()
    with pytest.raises(ValueError, match="same variables in another order"):
        saved.restore(way, make(), [b, a, c])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "arguments, names, message",
    [
        ({}, ("second", "kernel", "bias"), "in another order. Build it .* kernel, se"),
        ({}, ("kernel", "second"), "Expected number of variables: 2. Found: 3"),
        ({}, ("kernel", "second", "second"), "Expected variable 2"),
        ({"cls": "MSVAS"}, (), "Expected class: svag_tf>MSVAS. Found: svag_tf>MSVAG"),
        ({"cls": "MSGD"}, (), "Expected class"),
        ({"use_ema": True}, (), r"Expected state: .*use_ema"),
        ({"sparse_updates": "lazy"}, (), "updates of rows"),
        ({"gradient_accumulation_steps": 2}, (), "gradient_accumulation_steps: 2"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_does_not_fit_is_refused(saved, way, arguments, names, message):
    """Before anything is changed, if there is anything to change."""
    optimizer, build_on = make(**arguments), variables(*names)
    with pytest.raises(ValueError, match=message):
        saved.restore(way, optimizer, build_on)
    if "not built" not in way:
        for value in numbers(optimizer)[2:]:
            assert not value.any()
        assert int(optimizer.iterations) == 0
    for i, variable in enumerate(build_on):
        assert (variable.numpy() == i + 1).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", ["Adam", "SGD", "Lion"])
@pytest.mark.parametrize("cls", ["MSVAG", "SSD"])
def test_state_of_keras_optimizers_is_refused(way, other, cls, tmp_path):
    saved = Saved(make(variables(), other, steps=2), tmp_path)
    optimizer = make(cls=cls)
    with pytest.raises(ValueError, match="that of another"):
        saved.restore(way, optimizer, variables())
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("other", ["Adam", "SGD", "LossScaleOptimizer"])
def test_another_optimizer_refuses_our_checkpoint(saved, other, built):
    """It would take the step count for its own, and say nothing about the slots."""
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
    """As is one that has made no updates; another is refused."""
    saved = Saved(make(), tmp_path)
    optimizer = svag_tf.MSVAG(0.3)
    saved.restore(way, optimizer, variables())
    assert float(optimizer.learning_rate) == np.float32(0.1)
    for value in numbers(optimizer)[2:]:
        assert not value.any()
    with pytest.raises(ValueError, match="and this one has made updates"):
        saved.restore(way, make(variables(), steps=1), variables())


def test_schedule_in_place_of_a_number(saved):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = svag_tf.MSVAG(schedule)
    optimizer.build(variables())
    with pytest.raises(ValueError, match="none if it is a schedule"):
        optimizer.load_own_variables(saved.store)


@pytest.mark.parametrize("cls", CLASSES)
def test_damaged_store(cls, tmp_path):
    """A `.weights.h5` file has no checksum of its own: every array has ours."""
    store = Saved(make(variables(), cls, steps=2), tmp_path).store
    for key in store:
        if key == "svag_tf":
            continue
        optimizer = make(variables(), cls)
        before = numbers(optimizer)
        damaged = dict(store)
        content = bytearray(np.ascontiguousarray(store[key]).tobytes())
        content[0] ^= 1
        damaged[key] = np.frombuffer(bytes(content), store[key].dtype).reshape(
            store[key].shape
        )
        with pytest.raises(ValueError, match="is damaged"):
            optimizer.load_own_variables(damaged)
        for a, b in zip(numbers(optimizer), before):
            np.testing.assert_array_equal(a, b)


def model_of(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def test_weights_alone_of_a_model_with_another_optimizer(tmp_path):
    """Through files: refused as a whole, and taken if that is what is asked for."""
    model = model_of("adam")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    other = model_of(svag_tf.MSVAG())
    with pytest.raises(ValueError, match="another class"):
        other.load_weights(path)
    with pytest.warns(UserWarning, match="another class"):
        other.load_weights(path, skip_mismatch=True)
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])
    other.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))


@pytest.mark.parametrize("steps", [0, 2])
def test_built_by_its_first_step(steps, tmp_path):
    """Which is in a graph, and must not load the state at every step."""
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


def test_model_with_a_loss_scale_optimizer_around_another(tmp_path):
    def scaled(optimizer):
        return model_of(keras.optimizers.LossScaleOptimizer(optimizer))

    model = scaled(svag_tf.MSSD())
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    checkpoint = tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
    other = scaled(svag_tf.MSGD())
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match="MSSD"):
        other.load_weights(path)
    with pytest.raises(ValueError, match="MSSD"):
        tf.train.Checkpoint(other).restore(checkpoint)


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("module", [keras.optimizers, svag_tf.distribution])
def test_loss_scale_optimizer_that_is_not_built(module, tmp_path):
    """Keras leaves out its scale: a file is refused, a checkpoint restored."""

    def scaled():
        return model_of(module.LossScaleOptimizer(svag_tf.MSVAG(), 8.0, 2))

    model = scaled()
    for _ in range(3):
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    model.save_weights(tmp_path / "model.weights.h5")
    checkpoint = tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match="must be built before its state is loaded"):
        scaled().load_weights(tmp_path / "model.weights.h5")
    other = scaled()
    tf.train.Checkpoint(other).restore(checkpoint)
    other.optimizer.build(other.trainable_variables)
    found, expected = numbers(other.optimizer), numbers(model.optimizer)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


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
