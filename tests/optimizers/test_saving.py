"""k + k steps equal 2k, bit for bit, through every way of saving; and export."""

import inspect
import json
import types

import keras
import numpy as np
import pytest
import table
from tiers import sampled

import svag_tf
from svag_tf.saving.model_state import random_states

tf = pytest.importorskip("tensorflow")

K = 2  # Epochs before and after.
WARM_UP_AND_COSINE = {
    "initial_learning_rate": 0.01,
    "decay_steps": 20,
    "warmup_target": 0.1,
    "warmup_steps": 5,
}

ARGUMENTS = {
    "schedule": {
        "learning_rate": lambda: keras.optimizers.schedules.CosineDecay(
            **WARM_UP_AND_COSINE
        )
    },
    "state_dtype": {"state_dtype": "bfloat16"},
    "weight decay and clipping": {"weight_decay": 0.1, "clipnorm": 0.5},
    "ema": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 4},
    # 3 does not divide the 4 steps of an epoch: a gradient is half accumulated.
    "accumulation": {"gradient_accumulation_steps": 3},
    "lazy": {"sparse_updates": "lazy"},
}
CASES = [(variant, {}) for variant in table.VARIANTS] + [
    ("msvag", arguments) for arguments in ARGUMENTS.values()
]
IDS = [*table.VARIANTS, *ARGUMENTS]
FAST = [("ssd", {}), ("msvag", {}), ("msvag", ARGUMENTS["accumulation"])]


def data():
    rng = np.random.default_rng(0)
    return (
        rng.integers(6, size=(16, 3)),
        rng.normal(size=(16, 2)).astype(np.float32),
    )


def optimizer_of(variant, arguments):
    arguments = {k: v() if callable(v) else v for k, v in arguments.items()}
    return table.make(variant, **{"learning_rate": 0.05, **arguments})


def model_of(variant, arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(6, 4),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )
    # How the model is compiled is tested elsewhere; this is the quickest.
    model.compile(optimizer_of(variant, arguments), "mse", jit_compile=False)
    svag_tf.keep_random_state(model)
    return model


def fit(model, epochs=K, callbacks=None):
    model.fit(*data(), 4, epochs, shuffle=False, verbose=0, callbacks=callbacks)


def state(model):
    """Returns all state that training continues from, by name."""
    optimizer = model.optimizer
    arrays = {f"weight {i}": w for i, w in enumerate(model.get_weights())}
    (random_state,) = random_states(model)
    arrays["random state"] = random_state.numpy()
    for i, variable in enumerate(optimizer.variables):
        arrays[f"of optimizer {i}"] = variable.numpy()
    for name in ("m_tilde", "v_tilde"):
        for i, slot in enumerate(getattr(optimizer, name)):
            arrays[f"{name} {i}"] = slot.numpy()
    return arrays


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(
    scope="module",
    params=sampled(lambda case: case[0] in FAST, [(case,) for case in CASES], IDS),
)
def run(request, tmp_path_factory):
    """A run of 2k epochs: its state after k, as saved in every way, and at its end."""
    run = types.SimpleNamespace()
    run.variant, run.arguments = request.param
    folder = tmp_path_factory.mktemp("run")
    run.backup = str(folder / "backup")
    model = model_of(run.variant, run.arguments)
    backup = keras.callbacks.BackupAndRestore(run.backup, delete_checkpoint=False)
    fit(model, callbacks=[backup])
    run.half = state(model)
    run.config = model.optimizer.get_config()
    run.file = folder / "model.keras"
    model.save(run.file)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "kept"), 3)
    run.checkpoint = manager.save()
    run.weights = model.get_weights()
    run.store = {}
    model.optimizer.save_own_variables(run.store)
    fit(model)
    run.full = state(model)
    assert not np.array_equal(run.half["weight 0"], run.full["weight 0"])
    return run


def test_model_file(run):
    model = keras.models.load_model(run.file)
    svag_tf.keep_random_state(model)
    assert_same(state(model), run.half)
    assert model.optimizer.get_config() == run.config
    fit(model)
    assert_same(state(model), run.full)


@pytest.mark.parametrize("deferred", [False, True], ids=["built", "deferred"])
def test_checkpoint(run, deferred):
    """Restored into an optimizer that is built, or that is yet to be."""
    model = model_of(run.variant, run.arguments)
    optimizer = model.optimizer
    if not deferred:
        optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    status = checkpoint.restore(run.checkpoint)
    optimizer.build(model.trainable_variables)
    status.assert_existing_objects_matched()
    assert_same(state(model), run.half)
    if deferred:
        fit(model)
        assert_same(state(model), run.full)


def test_backup_and_restore(run):
    model = model_of(run.variant, run.arguments)
    backup = keras.callbacks.BackupAndRestore(run.backup, delete_checkpoint=False)
    fit(model, 2 * K, callbacks=[backup])
    assert_same(state(model), run.full)


@pytest.mark.parametrize("built", [False, True], ids=["not built", "built"])
def test_own_variables(run, built):
    """Keras' plain store: `save_own_variables` and `load_own_variables`."""
    model = model_of(run.variant, run.arguments)
    model.set_weights(run.weights)
    if built:
        model.optimizer.build(model.trainable_variables)
    model.optimizer.load_own_variables(run.store)
    model.optimizer.build(model.trainable_variables)
    assert_same(state(model), run.half)


@pytest.mark.parametrize("variant", ["mssd", "msvag"])
def test_loss_scale_optimizer_in_a_model_file(variant, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = model_of(variant, {})
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    svag_tf.keep_random_state(loaded)
    fit(loaded)
    whole = model_of(variant, {})
    fit(whole)
    fit(whole)
    for a, b in zip(loaded.get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("variant, arguments", CASES, ids=IDS)
def test_config(variant, arguments):
    """Through JSON and back: an equal optimizer, of the same class."""
    optimizer = optimizer_of(variant, arguments)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = type(optimizer).from_config(config)
    assert again.get_config() == optimizer.get_config()
    serialized = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    assert serialized["registered_name"] == f"svag_tf>{type(optimizer).__name__}"
    by_keras = keras.optimizers.deserialize(serialized)
    assert type(by_keras) is type(optimizer)
    assert by_keras.get_config() == optimizer.get_config()


@pytest.mark.parametrize("cls", table.classes())
def test_config_has_every_argument(cls):
    assert set(inspect.signature(cls).parameters) <= set(cls().get_config())


def test_config_holds_every_argument():
    """No argument is lost: each has a value that is not its default."""
    arguments = {
        "learning_rate": 0.25,
        "beta": 0.5,
        "adaptation": "adam",
        "state_dtype": "float64",
        "jit_compile": False,
        "sparse_updates": "lazy",
        "weight_decay": 0.1,
        "clipnorm": 2.0,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 7,
        "loss_scale_factor": 8.0,
        "gradient_accumulation_steps": 3,
        "name": "mine",
    }
    optimizer = svag_tf.MSVAS(**arguments)
    config = svag_tf.MSVAS.from_config(optimizer.get_config()).get_config()
    rest = {"clipvalue": None, "global_clipnorm": None}
    assert config == {**arguments, **rest}


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_schedule_survives(variant):
    optimizer = optimizer_of(variant, ARGUMENTS["schedule"])
    again = type(optimizer).from_config(optimizer.get_config())
    rates = []
    for each in (optimizer, again):
        theta = keras.Variable(0.0)
        each.build([theta])
        taken = []
        for _ in range(8):
            taken.append(float(each.learning_rate))
            each.apply([keras.ops.array(1.0)], [theta])
        rates.append((taken, float(theta)))
    assert rates[0] == rates[1]
    assert len(set(rates[0][0])) == 8


@keras.saving.register_keras_serializable(package="svag_tf_tests")
def slow_rate():
    return 0.125


def test_callable_survives():
    optimizer = svag_tf.MSVAG(slow_rate)
    again = svag_tf.MSVAG.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert float(again.learning_rate) == 0.125


@pytest.mark.parametrize("variant", ["msvag", "ssd"])  # With slots, and without.
def test_export(variant, tmp_path):
    """A compiled and trained model, as a SavedModel for inference."""
    model = model_of(variant, {})
    fit(model, 1)
    model.export(tmp_path / "exported", verbose=False)
    tokens = data()[0].astype(np.int32)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(
        exported.serve(tokens), model.predict(tokens, verbose=0), 1e-5, 1e-6
    )
    fit(model, 1)  # It goes on training afterwards.
