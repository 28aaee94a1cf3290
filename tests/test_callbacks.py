"""`GradientNoise`: against a slow twin, in `logs` and files, on every backend."""

import csv
import json
import math
import os
import re
import time
import types
import urllib.parse
import urllib.request
from pathlib import Path

import keras
import noise_checks
import numpy as np
import pytest
from noise_checks import OPTIMIZERS, twin
from oracle import METHODS
from test_backends import BACKENDS, python_on

import svag_tf
from svag_tf.callbacks import GradientNoise
from svag_tf.noise import callback
from svag_tf.noise import files as noise_files
from svag_tf.noise.files import BINS, COLUMNS, HISTOGRAM_COLUMNS, OVERALL, read_table
from svag_tf.noise.per_example import compiled
from svag_tf.noise.slots import SUPPORTED
from svag_tf.noise.statistics import noise_scale

tf = pytest.importorskip("tensorflow")


def linear_model(optimizer, units=1):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, use_bias=False, name="first"),
            keras.layers.Dense(units, name="second"),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def by_hand(model, noise, gradients, per_batch=None):
    """Applies gradients and calls the callback as `fit` would; returns all logs."""
    model.optimizer.build(model.trainable_variables)
    noise.set_model(model)
    noise.on_train_begin()
    noise.on_epoch_begin(0)
    every = []
    for i, g in enumerate(gradients):
        noise.on_train_batch_begin(i)
        model.optimizer.apply([keras.ops.convert_to_tensor(part) for part in g])
        every.append({"loss": 1.0})
        noise.on_train_batch_end(i, every[-1])
        if per_batch:
            per_batch(i)
    logs = {}
    noise.on_epoch_end(0, logs)
    noise.on_train_end()
    return every, logs


def random_gradients(model, steps, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    means = [1.5 * rng.normal(size=shape) for shape in shapes]
    return [
        [(m + rng.normal(size=m.shape)).astype("float32") for m in means]
        for _ in range(steps)
    ]


def flat(parts):
    return np.concatenate([np.ravel(part) for part in parts])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [2, 30])
def test_every_quantity_against_the_twin(name, steps):
    model = linear_model(OPTIMIZERS[name]())
    gradients = random_gradients(model, steps)
    noise = GradientNoise(every=steps, preset="business", batch_size=32)
    _, logs = by_hand(model, noise, gradients)
    second = {"second": 0.99} if name == "adam" else {}
    for prefix, chosen in (
        ("noise", slice(None)),
        ("noise/first", slice(0, 1)),
        ("noise/second", slice(1, 3)),
    ):
        expected = twin(
            name,
            flat(model.get_weights()[chosen]),
            [flat(g[chosen]) for g in gradients],
            0.01,
            batch_size=32,
            **second,
        )
        for quantity, value in expected.items():
            np.testing.assert_allclose(
                logs[f"{prefix}/{quantity}"], value, 2e-4, err_msg=quantity
            )


def test_first_step_says_nothing_of_the_noise():
    model = linear_model(svag_tf.MSVAG())
    _, logs = by_hand(model, GradientNoise(), random_gradients(model, 1))
    assert logs["noise/sqrt_s"] == 0 and logs["noise/gamma"] == 1
    assert logs["noise/eta2"] == 0


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "adam"])
@pytest.mark.parametrize("size", [1e-35, 1e-20, 3e19, 1e35])
def test_gradients_of_any_size(name, size):
    """A constant gradient has no noise, even if its square does not fit in float32."""
    model = linear_model(OPTIMIZERS[name]())
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    gradients = [[np.full(shape, size, "float32") for shape in shapes]] * 3
    noise = GradientNoise(every=3, preset="business")
    _, logs = by_hand(model, noise, gradients)
    assert logs["noise/gamma"] == pytest.approx(1, abs=1e-3)
    assert logs["noise/eta2"] == pytest.approx(0, abs=1e-5)
    assert logs["noise/m"] == pytest.approx(size * math.sqrt(17), rel=1e-5)


def test_elements_without_gradient_do_not_count():
    model = linear_model(svag_tf.MSVAG())
    gradients = random_gradients(model, 8)
    for g in gradients:
        g[0][1:] = 0
    _, logs = by_hand(model, GradientNoise(every=8), gradients)
    expected = twin("msvag", np.ones(4), [g[0][0] for g in gradients], 0.01)
    assert logs["noise/first/gamma"] == pytest.approx(expected["gamma"], rel=1e-4)
    zeros = [[0 * part for part in g] for g in gradients]
    model = linear_model(svag_tf.MSVAG())
    _, logs = by_hand(model, GradientNoise(), zeros)
    assert logs["noise/gamma"] == 0 and math.isnan(logs["noise/eta2"])


def test_a_variable_that_missed_updates_has_its_own_count():
    model = linear_model(svag_tf.MSVAG(0.01))
    gradients = random_gradients(model, 6)
    noise = GradientNoise(every=9)
    model.optimizer.build(model.trainable_variables)
    noise.set_model(model)
    noise.on_train_begin()
    noise.on_epoch_begin(0)
    variables = model.trainable_variables
    for i, g in enumerate(gradients):
        first = None if i < 3 else tf.constant(g[0])
        model.optimizer.apply([first, *map(tf.constant, g[1:])], variables)
    logs = {}
    noise.on_epoch_end(0, logs)
    expected = twin("msvag", np.ones(12), [g[0].ravel() for g in gradients[3:]], 0.01)
    for name in ("eta2", "gamma", "m", "sqrt_s"):
        assert logs[f"noise/first/{name}"] == pytest.approx(expected[name], rel=2e-4)


def test_rows_of_a_lazy_embedding_have_their_own_counts():
    model = keras.Sequential(
        [keras.Input((1,), dtype="int32"), keras.layers.Embedding(3, 4, name="table")]
    )
    model.compile(svag_tf.MSVAG(0.01, sparse_updates="lazy"), "mse")
    noise = GradientNoise()
    model.optimizer.build(model.trainable_variables)
    noise.set_model(model)
    noise.on_train_begin()
    rng = np.random.default_rng(0)
    seen = {0: [], 1: []}
    for i in range(9):
        row = int(i % 3 == 0)
        seen[row].append((2 + rng.normal(size=4)).astype("float32"))
        slices = tf.IndexedSlices(seen[row][-1][None], [row], (3, 4))
        model.optimizer.apply([slices], model.trainable_variables)
    logs = {}
    noise.on_epoch_begin(0)
    noise.on_epoch_end(0, logs)
    rows = [twin("msvag", np.ones(4), seen[row], 0.01) for row in (0, 1)]
    assert logs["noise/table/gamma"] == pytest.approx(
        np.mean([row["gamma"] for row in rows]), rel=1e-4
    )
    assert logs["noise/table/sqrt_s"] == pytest.approx(
        math.hypot(*(row["sqrt_s"] for row in rows)), rel=1e-4
    )


@pytest.mark.parametrize("name", ["msvag", "adam"])
def test_layers_that_are_frozen_later(name):
    """The optimizer still has their slots, at the head of its lists."""
    model = linear_model(OPTIMIZERS[name]())
    model.optimizer.build(model.trainable_variables)
    gradients = random_gradients(model, 8)
    model.layers[0].trainable = False
    noise = GradientNoise()
    noise.set_model(model)
    noise.on_train_begin()
    noise.on_epoch_begin(0)
    for g in gradients:
        model.optimizer.apply(list(map(tf.constant, g[1:])), model.trainable_variables)
    logs = {}
    noise.on_epoch_end(0, logs)
    second = 0.99 if name == "adam" else None
    rest = [flat(g[1:]) for g in gradients]
    expected = twin(name, np.ones(5), rest, 0.01, second=second)
    for quantity in ("eta2", "gamma", "m", "sqrt_s"):
        value = pytest.approx(expected[quantity], rel=2e-4)
        assert logs[f"noise/{quantity}"] == logs[f"noise/second/{quantity}"] == value
    assert not any("first" in key for key in logs)


def test_layers_of_the_same_name():
    paths = ["m/x/kernel", "m/x/bias", "m/x/kernel", "m/x/bias", "m/all/bias", "free"]
    variables = [types.SimpleNamespace(path=path) for path in paths]
    model = types.SimpleNamespace(name="m", trainable_variables=variables)
    assert callback._groups(model) == {
        "x": [0, 1], "x_1": [2, 3], "all_0": [4], "free": [5], OVERALL: [*range(6)],
    }  # fmt: skip


def test_what_is_not_known_is_nan():
    """A batch size that no metric has counted; averages of NaN."""
    model = linear_model(svag_tf.MSVAG(0.01))
    gradients = random_gradients(model, 4)
    gradients[2] = [np.nan * g for g in gradients[2]]
    every, _ = by_hand(model, GradientNoise(every=2), gradients)
    assert every[1]["noise/eta2"] > 0 and every[1]["noise/gamma"] > 0
    assert math.isnan(every[1]["noise/noise_scale"])
    assert all(math.isnan(every[3][f"noise/{name}"]) for name in ("eta2", "gamma", "m"))


def fit(model, noise, batches=10, batch_size=4, epochs=1, more=(), **arguments):
    rng = np.random.default_rng(0)
    n = batches * batch_size
    x = rng.normal(size=(n, 3)).astype("float32")
    y = (x[:, :1] + rng.normal(size=(n, 1))).astype("float32")
    return model.fit(
        x, y, batch_size, epochs, verbose=0, callbacks=[noise, *more], **arguments
    )


def test_what_goes_to_logs(tmp_path):
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append({name for name in logs if name.startswith("noise/")})

    table = tmp_path / "log.csv"
    model = linear_model(svag_tf.MSVAG(0.01))
    more = (Spy(), keras.callbacks.CSVLogger(str(table)))
    history = fit(model, GradientNoise(every=4), epochs=2, more=more).history
    overall = {
        f"noise/{name}"
        for name in (
            "eta2", "gamma", "m", "sqrt_s",
            "noise_scale", "noise_scale_error", "critical_batch_size",
        )
    }  # fmt: skip
    # Batches 4, 8 and 12, ... of all: every four batches, across the epochs.
    assert [i + 1 for i, names in enumerate(seen) if names] == [4, 8, 12, 16, 20]
    assert seen[3] == overall
    layers = {
        f"noise/{layer}/{name}"
        for layer in ("first", "second")
        for name in ("eta2", "gamma", "m", "sqrt_s")
    }
    assert {n for n in history if n.startswith("noise/")} == overall | layers
    assert len(history["noise/gamma"]) == 2
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 2 and overall | layers < rows[0].keys()
    assert float(rows[1]["noise/gamma"]) == pytest.approx(history["noise/gamma"][1])


def test_short_epochs_are_measured_at_their_end():
    history = fit(linear_model(svag_tf.MSVAG()), GradientNoise(every=100), 3).history
    assert np.isfinite(history["noise/gamma"]).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nothing_is_traced_again(jit_compile):
    traced = []

    class Counting(keras.Sequential):
        def train_step(self, *arguments):
            traced.append(1)
            return super().train_step(*arguments)

    def traces(noise):
        traced.clear()
        model = Counting([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(svag_tf.MSVAG(), "mse", jit_compile=jit_compile)
        fit(model, noise, epochs=3)
        return len(traced)

    noise = GradientNoise(every=2, preset="business")
    assert traces(noise) == traces(keras.callbacks.Callback()) >= 1
    assert noise._sums.experimental_get_tracing_count() == 1


def test_callback_after_callback(caplog):
    """Models of the same shapes share a program, and TensorFlow has no warnings."""
    noises = [GradientNoise() for _ in range(3)]
    for noise, units in zip(noises, (1, 2, 1)):
        by_hand(linear_model(svag_tf.MSVAG(), units), noise, ())
    assert noises[0]._sums is noises[2]._sums is not noises[1]._sums
    monitor = tf.get_logger()
    monitor.addHandler(caplog.handler)
    for _ in range(6):
        compiled(lambda x: x + 1)(tf.zeros(()))
    monitor.removeHandler(caplog.handler)
    assert not caplog.records


def test_the_training_is_the_same_with_and_without():
    weights = []
    for noise in (keras.callbacks.Callback(), GradientNoise(every=1, preset="full")):
        keras.utils.set_random_seed(0)
        model = linear_model(svag_tf.MSVAG())
        fit(model, noise)
        weights.append(flat(model.get_weights()))
    np.testing.assert_array_equal(*weights)


def test_several_steps_at_once():
    model = linear_model(svag_tf.MSVAG(0.01))
    model.compile(svag_tf.MSVAG(0.01), "mse", steps_per_execution=3)
    steps = []
    noise = GradientNoise(every=6)
    measure = noise._measure
    noise._measure = lambda logs: (
        steps.append(int(model.optimizer.iterations)),
        measure(logs),
    )
    fit(model, noise, batches=12)
    assert steps == [6, 12]


@pytest.mark.parametrize("accumulated", [None, 2])
def test_batch_size_is_counted(accumulated):
    optimizer = svag_tf.MSVAG(0.01, gradient_accumulation_steps=accumulated)
    noise = GradientNoise(every=10)
    history = fit(linear_model(optimizer), noise, batches=10, batch_size=6).history
    scale, eta2 = history["noise/noise_scale"][0], history["noise/eta2"][0]
    assert scale == pytest.approx(6 * (accumulated or 1) * eta2)
    assert history["noise/critical_batch_size"][0] == math.ceil(scale)


def test_loss_scaling():
    optimizer = keras.optimizers.LossScaleOptimizer(svag_tf.MSVAG(0.01), 8.0)
    history = fit(linear_model(optimizer), GradientNoise()).history
    plain = fit(linear_model(svag_tf.MSVAG(0.01)), GradientNoise()).history
    assert 0 < history["noise/gamma"][0] < 1
    assert history.keys() == plain.keys()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mirrored", *BACKENDS])
def test_other_backends_and_two_replicas(mode):
    script = str(Path(noise_checks.__file__))
    python_on("tensorflow" if mode == "mirrored" else mode, script, mode)


def test_noise_scale_is_the_exact_one():
    """At a learning rate of 0 nothing drifts: within three standard errors."""
    model = linear_model(svag_tf.MSVAG(0.0, beta=0.95))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4800, 3)).astype("float32")
    y = (3 + x[:, :1] + 4 * rng.normal(size=(4800, 1))).astype("float32")
    noise = GradientNoise(every=60)
    history = model.fit(x, y, 8, verbose=0, callbacks=[noise]).history
    exact = svag_tf.gradient_statistics(model, "mse", (x, y), verbose=False)
    scale = history["noise/noise_scale"][-1]
    error = history["noise/noise_scale_error"][-1]
    assert 0 < error < 0.3 * scale
    assert abs(scale - exact.simple_noise_scale) < 3 * error


def test_noise_scale_and_its_error():
    assert noise_scale([(6.0, 2.0)])[0] == 3.0
    assert math.isnan(noise_scale([(6.0, 2.0), (6.0, 2.0)])[1])
    assert noise_scale([(6.0, -1.0)] * 3)[0] == math.inf
    assert all(map(math.isnan, noise_scale([(0.0, 0.0)] * 3)))
    # The stated error is the scatter of the estimate over many windows.
    rng = np.random.default_rng(0)
    windows = [
        list(zip(30 + rng.normal(size=10), 10 + rng.normal(size=10)))
        for _ in range(2000)
    ]
    scales, errors = np.transpose([noise_scale(w) for w in windows])
    assert scales.mean() == pytest.approx(3, rel=0.01)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(scales.std(), rel=0.1)


def test_files(tmp_path):
    model = linear_model(svag_tf.MSVAG(0.01))
    history = fit(model, GradientNoise(4, "full", tmp_path), epochs=2).history
    rows = read_table(tmp_path / "noise.csv", COLUMNS)
    assert [(r["step"], r["layer"]) for r in rows] == [
        (str(step), layer)
        for step in (4, 8, 12, 16, 20)
        for layer in ("first", "second", OVERALL)
    ]
    last = rows[-1]
    assert last["epoch"] == "2" and float(last["learning_rate"]) == pytest.approx(0.01)
    assert float(last["loss"]) > 0 and float(last["seconds"]) >= 0
    for name in noise_files.QUANTITIES:
        assert float(last[name]) == pytest.approx(
            history[f"noise/{name}"][-1], rel=1e-6, nan_ok=True
        )
    table = read_table(tmp_path / "noise_histograms.csv", HISTOGRAM_COLUMNS)
    assert len(table) == 5 * 3 * 2
    m, v = (
        [slot[0].numpy() / (1 - 0.9**20)]
        for slot in (model.optimizer.m_tilde, model.optimizer.v_tilde)
    )
    rho = 0.1 * (1 + 0.9**20) / (1.9 * (1 - 0.9**20))
    s = np.maximum(v[0] - m[0] ** 2, 0) / (1 - rho)
    expected = {
        "gamma": np.histogram(m[0] ** 2 / (m[0] ** 2 + rho * s), BINS, (0, 1))[0],
        "log10_eta2": np.histogram(
            np.clip(np.log10(s / m[0] ** 2), -5, 5), BINS, (-5, 5)
        )[0],
    }
    for name, counts in expected.items():
        row = next(
            r
            for r in table
            if (r["step"], r["layer"], r["quantity"]) == ("20", "first", name)
        )
        assert [int(row[f"bin_{i}"]) for i in range(BINS)] == counts.tolist()


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), {"tensors": 0})
    accumulator.Reload()
    return {
        tag: [
            (e.step, tf.make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag)
        ]
        for tag in accumulator.Tags()["tensors"]
    }


@pytest.mark.needs("tensorboard")
def test_tensorboard_and_going_on(tmp_path):
    """A resumed training keeps the measurements up to that point, and no more."""
    model = linear_model(svag_tf.MSVAG(0.01))
    fit(model, GradientNoise(5, "full", tmp_path))
    path = tmp_path / "noise.csv"
    kept = path.read_text()
    # Lines of a later step, and one that was cut off: those of a killed process.
    later = kept.splitlines()[-1].replace("10,", "15,", 1)
    path.write_text(f"{kept}{later}\n20,1,0")
    fit(model, GradientNoise(5, "full", tmp_path))
    assert path.read_text().startswith(kept)
    rows = read_table(path, COLUMNS)
    assert [r["step"] for r in rows if r["layer"] == OVERALL] == ["5", "10", "15", "20"]
    made = events(tmp_path / "tensorboard" / "noise")
    gamma = [(int(r["step"]), float(r["gamma"])) for r in rows if r["layer"] == "first"]
    np.testing.assert_allclose(
        [(step, float(v)) for step, v in made["noise_gamma/first"]], gamma, 1e-5
    )
    histograms = made["noise_histogram_gamma/first"]
    assert [step for step, _ in histograms] == [5, 10, 15, 20]
    table = read_table(tmp_path / "noise_histograms.csv", HISTOGRAM_COLUMNS)
    counts = [int(table[0][f"bin_{i}"]) for i in range(BINS)]
    assert histograms[0][1][:, 2].tolist() == counts and sum(counts) == 12
    # Another training: the files are made anew.
    fit(linear_model(svag_tf.MSVAG(0.01)), GradientNoise(5, "economy", tmp_path))
    steps = [r["step"] for r in read_table(path, COLUMNS) if r["layer"] == OVERALL]
    assert steps == ["5", "10"]
    assert not (tmp_path / "noise_histograms.csv").exists()


@pytest.mark.needs("tensorboard")
def test_a_tensorboard_server_shows_them(tmp_path):
    """What its pages ask the server for."""
    from tensorboard import program

    fit(linear_model(svag_tf.MSVAG(0.01)), GradientNoise(5, "full", tmp_path))
    board = program.TensorBoard()
    board.configure(argv=["", f"--logdir={tmp_path}", "--port=0", "--load_fast=false"])
    url = board.launch()

    def asked(path):
        with urllib.request.urlopen(f"{url}data/plugin/{path}", timeout=100) as answer:
            return json.load(answer)

    run, until = "tensorboard/noise", time.monotonic() + 300
    while not asked("histograms/tags").get(run) and time.monotonic() < until:
        time.sleep(0.2)
    assert {"noise_eta2/all", "noise_gamma/first"} <= set(asked("scalars/tags")[run])
    tag = urllib.parse.urlencode({"run": run, "tag": "noise_gamma/first"})
    assert [step for _, step, _ in asked(f"scalars/scalars?{tag}")] == [5, 10]
    tag = urllib.parse.urlencode({"run": run, "tag": "noise_histogram_gamma/first"})
    (_, step, buckets), _ = asked(f"histograms/histograms?{tag}")
    assert step == 5 and sum(count for _, _, count in buckets) == 12


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(noise_files, "_tensorboard", lambda: (None, None))
    with pytest.warns(UserWarning, match="No TensorBoard files"):
        fit(linear_model(svag_tf.MSVAG()), GradientNoise(log_dir=tmp_path))
    assert os.listdir(tmp_path) == ["noise.csv"]


def test_another_file_of_that_name(tmp_path):
    model = linear_model(svag_tf.MSVAG())
    fit(model, GradientNoise())
    (tmp_path / "noise.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must start with the columns step, epoch"):
        fit(model, GradientNoise(log_dir=tmp_path))
    assert (tmp_path / "noise.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.needs("tensorboard")
def test_a_folder_that_cannot_be_written(tmp_path, disk_of):
    """The error comes before the first step, and nothing is left behind."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / "noise").write_text("")
    model = linear_model(svag_tf.MSVAG())
    for path, named in (
        ("file", "file"),
        ("file/below", "file/below"),
        ("run", "run/tensorboard/noise"),
        ("null\0", "null\0"),
    ):
        message = re.escape(f"Received: log_dir={str(tmp_path / named)!r}: ")
        with pytest.raises(OSError, match=f"`log_dir` must be a folder.*{message}"):
            fit(model, GradientNoise(log_dir=tmp_path / path))
    message = r"`log_dir` must be a folder .*File too large"
    with disk_of(0), pytest.raises(OSError, match=message):
        fit(model, GradientNoise(log_dir=tmp_path / "new"))
    assert os.listdir(tmp_path / "new") == []
    assert int(model.optimizer.iterations) == 0


def test_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(OSError, match=r"must be a folder .*Permission denied"):
        fit(linear_model(svag_tf.MSVAG()), GradientNoise(log_dir=tmp_path))


def test_a_disk_that_fills_up(tmp_path, disk_of):
    noise = GradientNoise(every=2, log_dir=tmp_path)
    fit(linear_model(svag_tf.MSVAG()), noise, batches=2)
    files = noise_files.Files(tmp_path, 2)
    size = (tmp_path / "noise.csv").stat().st_size
    message = r"Cannot write .*noise\.csv: .*File too large"
    with disk_of(size), pytest.raises(OSError, match=message):
        files.write([4, 1, 0.0, 0.1, 0.0], {OVERALL: {}})


@pytest.mark.parametrize(
    "optimizer, received",
    [
        (keras.optimizers.SGD(), "SGD$"),
        (keras.optimizers.RMSprop(), "RMSprop$"),
        (svag_tf.SSD(), "SSD$"),
        (svag_tf.MSGD(), "MSGD$"),
        (svag_tf.MSVAG(beta=0.0), r"MSVAG, beta=0\.0"),
        (svag_tf.MSVAG(variance="replicas"), "MSVAG, beta=0.9, variance='replicas'"),
        (keras.optimizers.Adam(beta_1=0.0), r"Adam, beta_1=0\.0"),
    ],
)
def test_optimizers_that_cannot_be_measured(optimizer, received):
    message = (
        f"does not have all three.*gradient_statistics computes.*Received: {received}"
    )
    with pytest.raises(ValueError, match=message):
        fit(linear_model(optimizer), GradientNoise())


def test_the_message_names_all_that_can_be_measured():
    measured = {method.cls for method in METHODS.values() if method.is_measured}
    assert measured <= {*re.findall(r"\w+", SUPPORTED)}


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"every": 0},
            ValueError,
            "`every` must be an integer >= 1. Received: every=0",
        ),
        ({"every": 1.5}, TypeError, "`every` must be .*every=1.5 of type float"),
        ({"every": True}, TypeError, "`every` must be"),
        ({"log_dir": ""}, ValueError, "`log_dir` must be the path of a folder"),
        ({"log_dir": 3}, TypeError, "`log_dir` must be a path .*log_dir=3 of type int"),
        ({"batch_size": -1}, ValueError, "`batch_size` must be .*batch_size=-1"),
        ({"preset": "huge"}, ValueError, "'economy', 'business', 'full'.*'huge'"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GradientNoise(**arguments)


def test_a_model_that_is_not_compiled():
    noise = GradientNoise()
    noise.set_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="not compiled"):
        noise.on_train_begin()
