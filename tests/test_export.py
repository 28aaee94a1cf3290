"""SavedModels that continue training: the same weights as in Python, bit for bit."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from tiers import sampled

import svag_tf
from svag_tf.saving import export
from svag_tf.saving.trained_data import traced_data

tf = pytest.importorskip("tensorflow")

SCRIPT = Path(__file__).with_name("export_script.py")
K = 3  # Steps before the export, and after.
N = 8  # Examples of a batch; the last batch has fewer.


def dense(*outer, classes=3):
    """A model with dropout, random at every step, and batch normalization."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.BatchNormalization(),
            *outer,
            keras.layers.Dense(classes, dtype="float32"),
        ]
    )


def embedding():
    return keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(7, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def over_time():
    """Means, whose gradients TensorFlow optimizes for known shapes."""
    return keras.Sequential(
        [
            keras.Input((None, 2)),
            keras.layers.Dense(6),
            keras.layers.LayerNormalization(),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )


def branches():
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left, right])
    return keras.Model(
        {"left": left, "right": right},
        {"kind": keras.layers.Dense(3)(both), "size": keras.layers.Dense(1)(both)},
    )


def batches(case):
    rng = np.random.default_rng(1)

    def floats(*shape):
        return rng.normal(size=shape).astype("float32")

    for n in [N] * (2 * K - 1) + [N // 2]:
        x, y = floats(n, 4), rng.integers(3, size=n)
        if case.build is embedding:
            x = rng.integers(7, size=(n, 3)).astype("int32")
        if case.build is over_time:
            x = floats(n, 3, 2)
        if case.build is branches:
            x = {"left": x, "right": floats(n, 3)}
            y = {"kind": y, "size": floats(n, 1)}
        if case.one_hot:
            y = np.eye(3, dtype="float32")[y]
        batch = {"x": x, "y": y}
        if case.weighted:
            batch["sample_weight"] = rng.uniform(size=n).astype("float32")
        yield batch


def case(
    optimizer, build=dense, one_hot=False, weighted=False, policy=None, **compiled
):
    return types.SimpleNamespace(
        optimizer=optimizer, build=build, one_hot=one_hot, weighted=weighted,
        policy=policy, compiled=compiled,
    )  # fmt: skip


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


CASES = {
    "schedule, clipping, decay": case(
        lambda: svag_tf.MSGD(
            keras.optimizers.schedules.CosineDecay(0.1, 20),
            weight_decay=0.1,
            clipnorm=0.5,
        )
    ),
    "one-hot, all compiled": case(
        lambda: svag_tf.MSVAS(0.01),
        one_hot=True,
        jit_compile=True,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    ),
    "accumulation, EMA": case(
        lambda: svag_tf.SVAG(
            0.1,
            use_ema=True,
            ema_momentum=0.5,
            ema_overwrite_frequency=2,
            gradient_accumulation_steps=2,
            state_dtype="bfloat16",
        )
    ),
    "loss scaling": case(lambda: svag_tf.MSSD(0.01), policy="mixed_float16"),
    "dicts, sample weights": case(
        lambda: svag_tf.SVAS(0.01, adaptation="adam"),
        branches,
        weighted=True,
        loss={"kind": sparse(), "size": "mse"},
        metrics={"kind": ["accuracy"]},
    ),
    "lazy embedding": case(
        lambda: svag_tf.MSVAG(0.1, sparse_updates="lazy"), embedding
    ),
    "no slots": case(lambda: svag_tf.SSD(0.01, clipvalue=0.1, jit_compile=False)),
    "Adam": case(lambda: keras.optimizers.Adam(0.01), over_time),
}


def model_of(case):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(case.policy or "float32")
    model = case.build()
    keras.config.set_dtype_policy("float32")
    arguments = {"loss": sparse(), "metrics": ["accuracy"], "jit_compile": False}
    model.compile(case.optimizer(), **{**arguments, **case.compiled})
    if case.policy:  # Starts so high that it needs more steps to come down.
        model.optimizer.initial_scale = 128.0
    return model


def flat(batch):
    """As the signature's keyword arguments."""
    arguments = {}
    for name, value in batch.items():
        parts = value if isinstance(value, dict) else {None: value}
        arguments |= {f"{name}_{k}" if k else name: v for k, v in parts.items()}
    return arguments


def values(model):
    metrics = {id(v) for v in model.metrics_variables}
    own = [v for v in model.variables if id(v) not in metrics]
    return [v.numpy() for v in (*own, *model.optimizer.variables)]


FAST = ("no slots",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Some cases, exported after k steps and continued here and elsewhere."""
    return runs_of(FAST, tmp_path_factory)


SLOW = ("Adam", "lazy embedding")


@pytest.fixture(scope="module")
def slow_runs(tmp_path_factory):
    return runs_of(SLOW, tmp_path_factory)


@pytest.fixture(scope="module")
def exhaustive_runs(tmp_path_factory):
    return runs_of(CASES.keys() - {*FAST, *SLOW}, tmp_path_factory)


def runs_of(names, tmp_path_factory):
    runs = {}
    for name in names:
        one = CASES[name]
        folder = tmp_path_factory.mktemp("run")
        model = model_of(one)
        train, rest = list(batches(one))[:K], list(batches(one))[K:]
        for batch in train:
            model.train_on_batch(**batch)
        before = values(model)
        export.export_trainable(
            model,
            folder / "exported",
            sample_weight=one.weighted or None,
        )
        for a, b in zip(values(model), before):
            np.testing.assert_array_equal(a, b)
        arrays = {
            f"{argument}/{i}": array
            for i, batch in enumerate(rest)
            for argument, array in flat(batch).items()
        }
        np.savez(folder / "data.npz", **arrays)
        logs = []
        for batch in rest:
            model.reset_metrics()
            logs.append(model.train_on_batch(**batch, return_dict=True))
        runs[name] = types.SimpleNamespace(
            case=one, folder=folder, model=model, logs=logs, before=before, batch=batch
        )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, str(SCRIPT), *(str(run.folder) for run in runs.values())],
        check=True,
        env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=tmp_path_factory.getbasetemp(),
    )
    return runs


@pytest.mark.parametrize("name", sampled(FAST, CASES))
def test_goes_on_bit_for_bit(request, name):
    """In a process without Keras, and back: model, slots, counters, random states."""
    runs = "runs" if name in FAST else "exhaustive_runs"
    runs = "slow_runs" if name in SLOW else runs
    run = request.getfixturevalue(runs)[name]
    back = model_of(run.case)
    svag_tf.restore_trained(back, run.folder / "trained")
    found, expected = values(back), values(run.model)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(expected, run.before))
    logs = json.loads((run.folder / "logs.json").read_text())
    assert logs == [
        {key: pytest.approx(float(value), rel=1e-5) for key, value in one.items()}
        for one in run.logs
    ]


@pytest.mark.exhaustive
def test_functions_take_and_return_structures(exhaustive_runs):
    run = exhaustive_runs["dicts, sample weights"]
    loaded = tf.saved_model.load(str(run.folder / "exported"))
    loaded.restore(path=str(run.folder / "trained"))
    x, expected = run.batch["x"], run.model(run.batch["x"])
    found = loaded.infer(x=x)
    assert found.keys() == expected.keys()
    named = loaded.signatures["infer"](x_left=x["left"], x_right=x["right"])
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5)
        np.testing.assert_array_equal(named[key], found[key])
    logs = loaded.evaluate(**run.batch)
    run.model.reset_metrics()
    expected = run.model.test_on_batch(**run.batch, return_dict=True)
    assert {k: float(v) for k, v in logs.items()} == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def loaded(runs):
    """A loaded model of a few variables."""
    run = runs["no slots"]
    return tf.saved_model.load(str(run.folder / "exported"))


def test_signatures(runs, loaded):
    assert set(loaded.signatures) == {
        "train", "infer", "evaluate", "save", "restore", "train_from",
    }  # fmt: skip
    batch = flat(runs["no slots"].batch)
    outputs = {name: {"loss", "accuracy"} for name in ("train", "evaluate")}
    for name, keys in outputs.items():
        assert loaded.signatures[name](**batch).keys() == keys
    assert list(loaded.signatures["infer"](x=batch["x"])) == ["output"]


def test_train_from_does_it_all(runs, loaded, tmp_path):
    """restore, train and save in one call, which keeps nothing in between."""
    run = runs["no slots"]
    arrays = np.load(run.folder / "data.npz")
    path = ""
    for i in range(K):
        to = str(tmp_path / f"{i}")
        found = loaded.signatures["train_from"](
            path=tf.constant(path), to=tf.constant(to),
            x=arrays[f"x/{i}"], y=arrays[f"y/{i}"],
        )  # fmt: skip
        path = to
        assert int(found["step"]) == K + i + 1
        loaded.train(x=arrays["x/0"], y=arrays["y/0"])  # Does not matter.
    back = model_of(run.case)
    svag_tf.restore_trained(back, path)
    for a, b in zip(values(back), values(run.model)):
        np.testing.assert_array_equal(a, b)


def state_of(loaded, batch):
    """A number that depends on all weights and on the random states."""
    return loaded.infer(x=batch["x"]).numpy().tobytes()


@pytest.mark.parametrize("kind", ["cut", "flipped"])
@pytest.mark.parametrize("file", ["index", "data-00000-of-00001"])
def test_damaged_checkpoint(runs, loaded, tmp_path, file, kind):
    """Damage at any byte is refused by name, or harmless; nothing changes in memory."""
    batch = runs["no slots"].batch
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    loaded.save(path=good)
    saved = state_of(loaded, batch)
    loaded.train(**batch)
    now = state_of(loaded, batch)
    assert now != saved
    loaded.save(path=bad)
    damaged = tmp_path / f"bad.{file}"
    whole = damaged.read_bytes()
    refused = 0
    for position in np.linspace(0, len(whole) - 1, 20).astype(int):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        damaged.write_bytes(whole[:position] if kind == "cut" else content)
        loaded.restore(path=good)
        try:
            loaded.restore(path=bad)
            assert file == "index" and kind == "flipped"  # It has unused bytes.
            assert state_of(loaded, batch) == now
        except tf.errors.InvalidArgumentError as error:
            assert bad in str(error)
            assert state_of(loaded, batch) == saved
            refused += 1
            model = runs["no slots"].model
            before = values(model)
            with pytest.raises(ValueError, match=re.escape(bad)):
                svag_tf.restore_trained(model, bad)
            for a, b in zip(values(model), before):
                np.testing.assert_array_equal(a, b)
    assert refused >= 15


def test_save_overwrites_nothing(loaded, tmp_path):
    path = str(tmp_path / "saved")
    loaded.save(path=path)
    content = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    with pytest.raises(tf.errors.InvalidArgumentError, match="not overwritten"):
        loaded.save(path=path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must not be empty"):
        loaded.save(path="")
    assert content == [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    loaded.restore(path=path)


def test_full_disk(runs, loaded, tmp_path, disk_of):
    """A write that ends after so many bytes leaves what was saved before."""
    batch = runs["no slots"].batch
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    loaded.save(path=good)
    size = (tmp_path / "good.data-00000-of-00001").stat().st_size
    saved = state_of(loaded, batch)
    loaded.train(**batch)
    for n in (0, 1, 10, size // 3, size // 2, size - 1):
        with disk_of(n), pytest.raises(tf.errors.OpError, match=re.escape(bad)):
            loaded.save(path=bad)
        with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(bad)):
            loaded.restore(path=bad)
        assert state_of(loaded, batch) != saved
    loaded.restore(path=good)
    assert state_of(loaded, batch) == saved
    loaded.save(path=bad)


def test_folder_that_cannot_be_written_to(loaded):
    with pytest.raises(tf.errors.OpError, match="/proc/nowhere"):
        loaded.save(path="/proc/nowhere/checkpoint")


@pytest.mark.slow
def test_checkpoint_of_another(runs, slow_runs, tmp_path):
    """Another class, other variables, another order: each refused in both worlds."""
    run = runs["no slots"]
    loaded = tf.saved_model.load(str(run.folder / "exported"))
    for name in ("Adam", "lazy embedding"):
        path = str((runs | slow_runs)[name].folder / "trained")
        with pytest.raises(tf.errors.InvalidArgumentError, match="another model"):
            loaded.restore(path=path)
        with pytest.raises(ValueError, match=f"{re.escape(path)} is that of another"):
            svag_tf.restore_trained(run.model, path)
    with pytest.raises(ValueError, match="is damaged, or not a checkpoint"):
        svag_tf.restore_trained(run.model, tmp_path / "nothing")


def small(**compiled):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    if compiled is not None:
        model.compile(**{"optimizer": svag_tf.MSVAG(), "loss": "mse", **compiled})
    return model


def uncompiled():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(svag_tf.MSVAG(), "mse")
    return model


def without_weights():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Flatten()])
    model.compile(svag_tf.MSVAG(), "mse")
    return model


def with_python_loss():
    def loss(y, output):
        size = tf.numpy_function(lambda a: a.sum(), [y], "float32")
        return tf.reduce_mean((y - output) ** 2) + tf.reshape(size, ())

    return small(loss=loss)


def with_foreign_variable():
    scale = tf.Variable(1.0, name="scale")
    return small(loss=lambda y, output: scale * tf.reduce_mean((y - output) ** 2))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def subclassed(of=Subclassed):
    model = of()
    model(np.zeros((1, 4), "float32"))
    model.compile(svag_tf.MSVAG(), "mse")
    return model


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: svag_tf.MSVAG(), "must be a keras.Model"),
        (uncompiled, "must be compiled"),
        (unbuilt, "must be built"),
        (without_weights, "trainable variables"),
        (with_python_loss, "calls Python code"),
        (with_foreign_variable, "variables that are not its own, scale"),
        (subclassed, "What the model takes is not known"),
        (lambda: small(loss="crossentropy"), "argument|not known"),
        (lambda: small(loss="ctc"), "with the argument `y`|fails"),
        (lambda: small(loss=None), "No loss to compute"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_exported_is_refused(build, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.export_trainable(build(), tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


class Custom(Subclassed):
    """A training step with an extra term in its loss; `bad` is what is refused."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad
        self.scale = self.add_weight(initializer="ones", name="scale")
        self.seed_generator = keras.random.SeedGenerator(1)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - y) ** 2) * self.more(y)
        gradients = tape.gradient(loss, self.dense.trainable_variables)
        self.update(gradients, self.dense.trainable_variables)
        return {"loss": loss}

    def update(self, gradients, variables):
        self.optimizer.apply(gradients, variables)


class Scaled(Custom):
    scales = (tf.Variable(1.0, name="foreign"),)

    def more(self, y):
        return self.scales[0] if self.bad else self.scale


class Random(Custom):
    generators = (keras.random.SeedGenerator(2),)

    def more(self, y):
        seed = self.generators[0] if self.bad else self.seed_generator
        return keras.random.uniform((), seed=seed)


class InPython(Custom):
    def more(self, y):
        if self.bad:
            return tf.numpy_function(lambda a: a.sum(), [y], "float32")
        return keras.ops.sum(y)


class Hidden(Custom):
    """Its optimizer is where the export does not look for it."""

    def __init__(self, bad):
        super().__init__(bad)
        self.place = types.SimpleNamespace(it=svag_tf.SSD(0.1)) if bad else {}
        if not bad:
            self.place["it"] = [svag_tf.SSD(0.1)]

    def more(self, y):
        return 1.0

    def update(self, gradients, variables):
        place = self.place.it if self.bad else self.place["it"][0]
        place.apply(gradients, variables)


class Without(Hidden):
    def update(self, gradients, variables):
        if not self.bad:
            return super().update(gradients, variables)
        for gradient, variable in zip(gradients, variables):
            variable.assign_sub(0.1 * gradient)


class Names(Custom):
    def more(self, y):
        return 1.0

    def train_step(self, data):
        logs = super().train_step(data)
        return {"_a/b": logs["loss"], "a_b" if not self.bad else "_a_b": 1.0, "ä": 2}


@pytest.mark.parametrize(
    "build, message",
    [
        (Scaled, "not its own, foreign.* in train. Make them weights of the model"),
        (Random, r"not its own, .*seed_generator_state.*\(or a keras.random.SeedGen"),
        (InPython, "calls Python code .* operations of TensorFlow or keras.ops"),
        (Hidden, "must use an optimizer of the model. Make the optimizer"),
        (Without, "must use an optimizer of the model. Make the optimizer"),
        (Names, "'_a/b' and '_a_b' would both be '_a_b' .* Rename one of them"),
    ],
)
def test_remedies_can_be_followed(build, message, tmp_path):
    x = np.ones((4, 4), "float32")
    for bad in (True, False):
        model = build(bad)
        model.compile(svag_tf.MSVAG(0.1))
        if bad:
            with pytest.raises(ValueError, match=message):
                export.export_trainable(model, tmp_path / "exported", x, x[:, :2])
    assert list(tmp_path.iterdir()) == []
    export.export_trainable(model, tmp_path / "exported", x, x[:, :2])
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    data = {"x": tf.constant(x), "y": tf.constant(x[:, :2])}
    logs = loaded.signatures["train"](**data)
    expected = {"_a_b", "a_b", "_"} if build is Names else {"loss"}
    assert set(logs) == expected
    loaded.save(path=str(tmp_path / "trained"))
    model.train_step((data["x"], data["y"]))
    here = [v.numpy() for v in model.variables]
    svag_tf.restore_trained(model, tmp_path / "trained")
    for variable, value in zip(model.variables, here):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6)


@pytest.mark.parametrize("loss", ["crossentropy", "ctc"])
def test_targets_that_are_not_known(loss, tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 4)), keras.layers.Dense(3, activation="softmax")]
    )
    model.compile(svag_tf.MSVAG(), loss)
    with pytest.raises(ValueError, match=r"not known\. .*y=|`x`, `y`"):
        export.export_trainable(model, tmp_path)
    x = np.ones((2, 6, 4), "float32")
    y = np.ones((2, 3), "int32") if loss == "ctc" else x[:, :, :3]
    export.export_trainable(model, tmp_path, y=y)
    loaded = tf.saved_model.load(str(tmp_path))
    logs = loaded.signatures["train"](x=tf.constant(x), y=tf.constant(y))
    assert float(logs["loss"]) == pytest.approx(model.train_on_batch(x, y), rel=1e-5)


@pytest.mark.slow
def test_names(tmp_path):
    """Slashes and all that a signature's names cannot have."""
    left, right = keras.Input((4,), name="l"), keras.Input((3,), name="r")
    both = keras.layers.Concatenate()([left, right])
    model = keras.Model(
        {"a/left": left, "ä/right side": right},
        {"out/1": keras.layers.Dense(2)(both), "2": keras.layers.Dense(1)(both)},
    )
    mae = keras.metrics.MeanAbsoluteError(name="error/mean")
    model.compile(
        svag_tf.MSVAG(0.1), {"out/1": "mse", "2": "mse"}, metrics={"out/1": [mae]}
    )
    x = {"a/left": np.ones((4, 4)), "ä/right side": np.ones((4, 3))}
    y = {"out/1": np.ones((4, 2)), "2": np.zeros((4, 1))}
    model.fit(x, y, verbose=0)
    svag_tf.export_trainable(model, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    signature = loaded.signatures["train"]
    names = {"x_a_left", "x___right_side", "y_out_1", "y_2"}
    assert set(signature.structured_input_signature[1]) == names
    flat = {
        re.sub(r"[^a-z0-9]", "_", f"{argument}_{key}"): tf.constant(value, "float32")
        for argument, parts in (("x", x), ("y", y))
        for key, value in parts.items()
    }
    logs = signature(**flat)
    x, y = ({k: tf.constant(v, "float32") for k, v in d.items()} for d in (x, y))
    assert set(loaded.train(x=x, y=y)) == set(
        model.train_on_batch(x, y, return_dict=True)
    )
    assert {"loss", "out_1_error_mean"} <= set(logs)
    inputs = {name: flat[name] for name in ("x_a_left", "x___right_side")}
    assert set(loaded.signatures["infer"](**inputs)) == {"out_1", "2"}


def test_told_what_the_data_is_like(tmp_path):
    """A subclassed model, and labels with an axis of their own."""
    model = subclassed()
    model.compile(svag_tf.MSVAG(0.1), sparse(), metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    y = np.array([[0], [1], [1]], "int32")
    svag_tf.export_trainable(model, tmp_path, x=x, y=y)
    loaded = tf.saved_model.load(str(tmp_path))
    loaded.signatures["train"](x=x[:2], y=y[:2])
    logs = loaded.signatures["train"](x=x, y=y)
    model.train_on_batch(x[:2], y[:2])
    model.reset_metrics()
    loss, accuracy = model.train_on_batch(x, y)
    assert float(logs["accuracy"]) == pytest.approx(accuracy)
    assert float(logs["loss"]) == pytest.approx(loss)
    with pytest.raises(ValueError, match=r"Argument `y` must be .*Received: y="):
        svag_tf.export_trainable(model, tmp_path / "again", x=x, y=object())
    with pytest.raises(ValueError, match=r"how many dimensions .*Received: y="):
        svag_tf.export_trainable(model, tmp_path / "again", x=x, y=tf.TensorSpec(None))


def test_folder_that_is_taken_or_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        svag_tf.export_trainable(small(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(OSError, match="mine"):
        svag_tf.export_trainable(small(), tmp_path / "mine" / "exported")

    def full(*arguments, **keywords):
        (Path(arguments[1])).mkdir()
        (Path(arguments[1]) / "saved_model.pb").write_text("a part")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OSError, match=r"Cannot write .*exported: .*No space left"):
        svag_tf.export_trainable(small(), tmp_path / "exported")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_killed_while_it_wrote(tmp_path):
    """What a killed process left in the temporary folder is cleared."""
    left = tmp_path / ".tmp-exported" / "variables"
    left.mkdir(parents=True)
    (left / "variables.index").write_text("a part")
    svag_tf.export_trainable(small(), tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert len(tf.saved_model.load(str(tmp_path / "exported")).signatures) == 6


@pytest.mark.slow
def test_saved_model_cli(runs, tmp_path):
    """TensorFlow's own command; every signature takes the same way."""
    folder = str(runs["no slots"].folder / "exported")
    saved = str(tmp_path / "saved")
    command = [
        sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run",
        "--dir", folder, "--tag_set", "serve", "--signature_def", "train_from",
        "--input_exprs", f"x=[[1.,2,3,4]];y=[1];path='';to={saved!r}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Result for output key loss" in done.stdout
    model = model_of(CASES["no slots"])
    svag_tf.restore_trained(model, saved)
    assert int(model.optimizer.iterations) == K + 1


@pytest.mark.slow
def test_losses_and_states_of_layers(tmp_path):
    """State that Keras keeps separately: a layer's own loss, the states of an RNN."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(2, 3, 4)),
            keras.layers.SimpleRNN(
                2, stateful=True, unroll=True, activity_regularizer="l2"
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile(svag_tf.MSVAG(0.1), "mse", jit_compile=False)
    svag_tf.export_trainable(model, tmp_path / "exported")
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    rng = np.random.default_rng(0)
    for _ in range(2):
        x, y = rng.normal(size=(2, 3, 4)).astype("float32"), np.ones((2, 1), "float32")
        loaded.train(x=x, y=y)
        model.train_on_batch(x, y)
    here = [*values(model), *(v.numpy() for v in model.layers[0].states)]
    loaded.save(path=str(tmp_path / "saved"))
    svag_tf.restore_trained(model, tmp_path / "saved")
    there = [*values(model), *(v.numpy() for v in model.layers[0].states)]
    for a, b in zip(there, here):
        np.testing.assert_array_equal(a, b)


def one_by_one(model, data):
    for batch in data:
        model.train_on_batch(*batch)


def from_generator(model, data):
    model.fit((batch for batch in data), steps_per_epoch=len(data), verbose=0)


def from_arrays(model, data):
    x, y = map(np.concatenate, zip(*data))
    model.fit(x, y, batch_size=N, shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "before, batch_size, after, batches_of_one_size",
    sampled(
        [(None, N, from_arrays, True)],
        [
            (None, None, one_by_one, False),
            (None, None, from_generator, False),
            (None, N, one_by_one, False),
            (None, N, from_arrays, True),
            (from_arrays, None, from_arrays, True),
            (from_generator, None, from_generator, False),
            (one_by_one, None, one_by_one, False),
        ],
    ),
)
def test_has_the_bits_that_the_model_has_in_python(
    tmp_path, before, batch_size, after, batches_of_one_size
):
    """They depend on what Keras knows of the shapes, in a model with means."""
    one = CASES["Adam"]
    model = model_of(one)
    data = [tuple(batch.values()) for batch in batches(one)]
    data = data[:-1] if batches_of_one_size else data
    if before:
        before(model, data)
    svag_tf.export_trainable(
        model,
        tmp_path / "exported",
        x=tf.TensorSpec((None, 3, 2)) if batch_size else None,
        batch_size=batch_size,
    )
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    after(model, data)
    here = values(model)
    for x, y in data:
        loaded.train(x=x, y=y)
    loaded.save(path=str(tmp_path / "trained"))
    svag_tf.restore_trained(model, tmp_path / "trained")
    for a, b in zip(values(model), here, strict=True):
        np.testing.assert_array_equal(a, b)


class TrainsByItself(Subclassed):
    def make_train_function(self, force=False):
        @tf.function
        def train(iterator):
            return self.train_step(iterator.get_next())

        self.train_function = train


def test_model_that_makes_its_training_function(tmp_path):
    """Its signature may differ from Keras', and it need not be a closure."""
    model = subclassed(TrainsByItself)
    x = np.zeros((4, 4), "float32")
    svag_tf.export_trainable(model, tmp_path / "exported", x)
    assert model.train_function is None
    model.fit(x, x[:, :2], batch_size=2, verbose=0)
    ((data, _),) = traced_data(model)
    assert data == (tf.TensorSpec((2, 4)), tf.TensorSpec((2, 2)))


@pytest.mark.parametrize("batch_size", [0, 2.0, True, 3])
def test_batch_size_that_is_none(tmp_path, batch_size):
    x = tf.TensorSpec((2, 4))
    with pytest.raises(ValueError, match=f"`batch_size` must .*={batch_size}, x=float"):
        svag_tf.export_trainable(small(), tmp_path / "a", x, batch_size=batch_size)
    assert list(tmp_path.iterdir()) == []
