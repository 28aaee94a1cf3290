"""The native update has the bits of the XLA kernel, or that runs; nothing crashes."""

import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading

import keras
import numpy as np
import pytest
import table
from tiers import sampled

import svag_tf
from svag_tf import kernels, native
from svag_tf.native import __main__ as builder

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the native update is TensorFlow's", allow_module_level=True)

from svag_tf.optimizers import known_answer, update  # noqa: E402

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="there is no C++ compiler"
)
KERNELS = (True, "native")
SOME = ("ssd", "msvag", "msvas_gaussian")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A build, compiled once for all tests."""
    path = tmp_path_factory.mktemp("native") / "update.so"
    builder._compile(path)
    return path


@pytest.fixture
def build(library):
    """Makes this process use a build, for all rules."""
    operation = native.operation_of(library)
    native.use(native.Build(operation, frozenset(known_answer.RULES), "in use: a test"))
    yield
    native.use(None)


slow = [pytest.mark.slow, needs_compiler, pytest.mark.usefixtures("build")]


def with_build(test):
    for mark in slow:
        test = mark(test)
    return test


def variable(shape=(6, 4), seed=0):
    return keras.Variable(
        np.random.default_rng(seed).normal(size=shape), dtype="float32"
    )


def state_of(optimizer, *variables):
    kept = [*variables, *optimizer.m_tilde, *optimizer.v_tilde]
    return [keras.ops.convert_to_numpy(v) for v in kept]


def assert_equal(*runs):
    for values in zip(*runs, strict=True):
        for other in values[1:]:
            np.testing.assert_array_equal(other, values[0])


# The numbers.


def test_names_of_the_methods():
    for name, (cls, arguments) in known_answer.METHODS.items():
        assert update.native_method(cls(**arguments)) == name
        assert f'("{name}")' in native.SOURCE.read_text()


@with_build
@pytest.mark.parametrize("decay", [None, 0.05])
@pytest.mark.parametrize("dtype", known_answer.SLOT_DTYPES)
@pytest.mark.parametrize("method", sampled(SOME, known_answer.METHODS))
def test_bits_are_those_of_the_xla_kernel(method, dtype, decay):
    arguments = {"state_dtype": dtype, "weight_decay": decay}
    assert known_answer.is_equal(method, **arguments)


@with_build
@pytest.mark.parametrize("beta", [0.5, 0.999])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (257, 33), (1, 1, 40000)])
def test_bits_for_other_shapes_and_values(shape, beta):
    for method in ("msvag", "msvas_gaussian"):
        assert known_answer.is_equal(method, shape, beta=beta)


@with_build
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("beta", sampled([0.9], [0.5, 0.9, 0.999]))
@pytest.mark.parametrize("variant", sampled(SOME, known_answer.METHODS))
def test_agrees_with_the_oracle(variant, beta, mode):
    steps = 25 if mode == "eager" else table.STEPS
    (record,) = table.run(variant, beta, mode, steps=steps, jit_compile="native")
    table.compare(record, variant, beta)


@with_build
def test_thousands_of_small_variables():
    """As one variable that has all their elements."""
    many = [variable((n % 5,), seed=n) for n in range(1500)]
    whole = keras.Variable(np.concatenate([v.numpy() for v in many]))
    sizes = [v.shape[0] for v in many]
    runs = []
    for kernel, thetas in ((True, [whole]), ("native", many)):
        optimizer = svag_tf.MSSD(0.1, jit_compile=kernel, weight_decay=0.1)
        optimizer.build(thetas)
        for t in range(2):
            rng = np.random.default_rng(t)
            gradient = rng.normal(size=whole.shape[0]).astype("float32")
            parts = np.split(gradient, np.cumsum(sizes)[:-1])
            optimizer.apply(map(tf.constant, parts if len(thetas) > 1 else [gradient]))
        state = thetas, optimizer.m_tilde
        runs.append([np.concatenate([v.numpy() for v in each]) for each in state])
    assert_equal(*runs)


@with_build
def test_bits_of_variables_that_xla_copies_and_joins(monkeypatch):
    monkeypatch.setattr(kernels, "MANY_SHAPES", 3)
    shapes = [(n, 3) for n in range(6)] + [(), (300, 300), (41,)]
    runs = []
    for kernel in KERNELS:
        optimizer = svag_tf.MSVAG(0.1, jit_compile=kernel, weight_decay=0.1)
        thetas = [variable(shape, seed) for seed, shape in enumerate(shapes)]
        optimizer.build(thetas)
        for t in range(4):
            rng = np.random.default_rng(t)
            gradients = [rng.normal(size=shape) for shape in shapes]
            optimizer.apply([tf.constant(g, tf.float32) for g in gradients])
        runs.append(state_of(optimizer, *thetas))
    assert_equal(*runs)


def model_of(optimizer, scale=False, **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(17, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    if scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**9)
    model.compile(optimizer, "mse", **arguments)
    return model


X = np.random.default_rng(0).normal(size=(48, 5)).astype("float32")
Y = np.random.default_rng(1).normal(size=(48, 3)).astype("float32")


def values_of(model):
    kept = (*model.weights, *model.optimizer.variables)
    return [keras.ops.convert_to_numpy(v) for v in kept]


def fit(model, epochs=2):
    model.fit(X, Y, 16, epochs=epochs, shuffle=False, verbose=0)
    return values_of(model)


@with_build
@pytest.mark.parametrize(
    "arguments, compiled",
    [
        ({}, {}),
        ({}, {"run_eagerly": True}),
        ({}, {"steps_per_execution": 3}),
        ({"gradient_accumulation_steps": 2}, {}),
        ({"use_ema": True, "ema_overwrite_frequency": 2}, {}),
        ({"clipnorm": 0.1, "weight_decay": 0.1}, {}),
        ({"loss_scale_factor": 8.0}, {}),
        ({"state_dtype": "bfloat16"}, {}),
        ({"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 9)}, {}),
        ({}, {"scale": True}),
    ],
)
def test_fit(arguments, compiled):
    runs = []
    for kernel in KERNELS:
        optimizer = svag_tf.MSVAG(**{"jit_compile": kernel, **arguments})
        runs.append(fit(model_of(optimizer, **compiled)))
    assert_equal(*runs)


def operations(function, *arguments):
    """Types of the operations of a graph and of all graphs that it calls."""
    graph = function.get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return [node.op for node in nodes]


def stepper(optimizer, *thetas, **arguments):
    optimizer.build(thetas)

    @tf.function(autograph=False, **arguments)
    def step(*gradients):
        optimizer.apply(gradients, thetas)

    return step


@with_build
def test_all_variables_are_updated_by_one_operation():
    thetas = [variable(), variable((3,)), variable(())]
    step = stepper(svag_tf.MSVAG(), *thetas)
    made = operations(step, *(tf.ones_like(theta.value) for theta in thetas))
    assert made.count(native.OPERATION) == 1
    assert "PartitionedCall" not in made and "StatefulPartitionedCall" not in made


def two_optimizers(kernel):
    first = svag_tf.MSVAG(0.1, jit_compile=kernel)
    second = svag_tf.MSSD(0.1, jit_compile=kernel)
    one, two = variable(seed=0), variable(seed=1)
    first.build([one])
    second.build([two])

    @tf.function(autograph=False)
    def step(t, gradient):
        first.apply([gradient], [one])
        sometimes = functools.partial(second.apply, [gradient], [two])
        tf.cond(t % 2 == 0, sometimes, lambda: None)

    for t in range(4):
        step(tf.constant(t), tf.sin(float(t) + one.value))
    return state_of(first, one, two) + state_of(second)


@with_build
def test_two_optimizers_in_one_step_and_a_condition():
    assert_equal(*map(two_optimizers, KERNELS))


class AroundABranch(svag_tf.MSVAG):
    """A subclass with an update before, in and after a branch."""

    def update_step(self, gradient, variable, learning_rate):
        make = functools.partial(super().update_step, gradient, variable, learning_rate)
        make()
        tf.cond(tf.reduce_sum(gradient) > 0, make, lambda: None)
        make()


@with_build
def test_updates_around_a_branch_keep_their_order():
    runs = []
    for kernel in KERNELS:
        theta = variable()
        optimizer = AroundABranch(0.1, jit_compile=kernel)
        step = stepper(optimizer, theta)
        for t in range(4):
            step(tf.sin(float(t) + theta.value) - 0.1)
        runs.append(state_of(optimizer, theta))
    assert_equal(*runs)


@with_build
def test_a_variable_that_is_given_twice_is_updated_twice():
    runs = []
    for kernel in KERNELS:
        theta = variable()
        optimizer = svag_tf.MSVAG(0.1, jit_compile=kernel)
        gradients = [tf.ones((6, 4)), tf.fill((6, 4), 2.0)]
        optimizer.apply(gradients, [theta, theta])
        runs.append(state_of(optimizer, theta))
    assert_equal(*runs)


@with_build
def test_a_value_that_was_read_stays_and_others_are_updated_in_place():
    optimizer, theta = svag_tf.MSVAG(jit_compile="native"), variable((64, 64))
    step = stepper(optimizer, theta)

    def address():
        return np.frombuffer(memoryview(theta.value.read_value()), "f4").ctypes.data

    gradient = tf.ones((64, 64))
    step(gradient)
    first = address()
    step(gradient)
    assert address() == first
    held = theta.value.read_value()
    before = held.numpy().copy()
    step(gradient)
    np.testing.assert_array_equal(held, before)
    assert (theta.numpy() != before).all()


@with_build
def test_a_gradient_that_is_the_variable_itself():
    runs = []
    for kernel in KERNELS:
        optimizer, theta = svag_tf.MSVAG(0.1, jit_compile=kernel), variable((40, 41))
        for _ in range(3):
            optimizer.apply([theta.value.read_value()], [theta])
        runs.append(state_of(optimizer, theta))
    assert_equal(*runs)


@with_build
def test_variables_read_and_updated_by_several_threads():
    """Every reader sees a variable before an update or after it, never between."""
    thetas = [keras.Variable(tf.zeros((300, 300))) for _ in range(2)]
    optimizers = [svag_tf.SSD(1.0, jit_compile="native") for _ in range(2)]
    # Both update both variables, in different orders.
    steps = [
        stepper(optimizer, *order)
        for optimizer, order in zip(optimizers, (thetas, thetas[::-1]))
    ]
    gradient, torn = -tf.ones((300, 300)), []
    for step in steps:
        step(gradient, gradient)

    def many(step):
        for _ in range(100):
            step(gradient, gradient)

    threads = [threading.Thread(target=many, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for theta in thetas:
            value = theta.numpy()
            torn.append((value != value[0, 0]).any())
    for thread in threads:
        thread.join()
    assert not any(torn)
    for theta in thetas:
        np.testing.assert_array_equal(theta, np.full((300, 300), 202.0))


@with_build
def test_a_gradient_whose_shape_shows_in_the_run_only():
    optimizer, theta = svag_tf.MSVAG(jit_compile="native"), variable()
    optimizer.build([theta])

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def step(gradient):
        optimizer.apply([gradient], [theta])

    step(tf.ones((6, 4)))
    before = state_of(optimizer, theta)
    for wrong in (tf.ones(()), tf.ones((1, 4)), tf.ones((4, 6))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="compatible"):
            step(wrong)
    assert_equal(before, state_of(optimizer, theta))


@with_build
def test_bad_calls_of_the_operation_are_errors():
    theta, m, v = (tf.Variable(tf.zeros(3)) for _ in range(3))

    def call(
        variables=(theta,), slots=(m, v), gradient=3, scalars=(1, 6), **attributes
    ):
        native.load().update(
            variables=[theta.handle],
            slots=[each.handle for each in slots],
            gradients=[tf.ones(gradient)],
            scalars=tf.ones(scalars),
            **{
                "method": "msvag",
                "slot_dtype": tf.float32,
                "decays": [False],
                **attributes,
            },
        )

    call()
    for wrong, message in (
        ({"method": "adam"}, "no method adam"),
        ({"slots": (m,)}, "has 2 slots"),
        ({"slots": (m, m)}, "twice"),
        ({"gradient": 4}, "compatible"),
        ({"scalars": (2, 6)}, r"\(1, 6\)"),
        ({"slot_dtype": tf.bfloat16}, "bfloat16"),
        ({"decays": []}, "decays"),
    ):
        before = [theta.numpy(), m.numpy(), v.numpy()]
        with pytest.raises((tf.errors.OpError, ValueError), match=message):
            call(**wrong)
        assert_equal(before, [theta.numpy(), m.numpy(), v.numpy()])


# Where it is used, and where not.


def used(function, *arguments):
    return native.OPERATION in operations(function, *arguments)


@with_build
@pytest.mark.parametrize("choice", ["auto", "native"])
def test_it_is_used_by_default_where_it_serves(choice):
    ones = tf.ones((6, 4))
    assert used(stepper(svag_tf.MSVAG(jit_compile=choice), variable()), ones)
    assert not used(stepper(svag_tf.MSVAG(jit_compile=True), variable()), ones)
    assert not used(stepper(svag_tf.MSVAG(jit_compile=False), variable()), ones)


class OwnRule(svag_tf.MSVAG):
    def direction(self, g, m, v, factor):
        return 2.0 * super().direction(g, m, v, factor)


SPARSE = tf.IndexedSlices(tf.ones((1, 4)), tf.constant([1]), tf.constant([6, 4]))


@with_build
@pytest.mark.parametrize(
    "cls, arguments, dtype, reason",
    [
        (OwnRule, {}, "float32", "its rule"),
        (svag_tf.MSVAG, {"beta": 0.4}, "float32", "its rule"),
        (svag_tf.MSVAG, {"beta": 0.0}, "float32", "its rule"),
        (svag_tf.MSVAG, {"state_dtype": "float16"}, "float32", "float16 slots"),
        (svag_tf.MSVAG, {}, "float64", "float64 slots"),
        (svag_tf.MSVAG, {}, "bfloat16", "not float32"),
        (svag_tf.MSVAG, {"sparse_updates": "lazy"}, "float32", "rows"),
    ],
)
def test_everything_else_takes_the_xla_kernel(cls, arguments, dtype, reason):
    assert_not_used(cls, arguments, dtype, reason, tf.ones((6, 4), dtype))


@with_build
def test_a_sparse_gradient_and_a_compiled_step_take_the_xla_kernel():
    assert_not_used(svag_tf.MSVAG, {}, "float32", "sparse", SPARSE)
    assert_not_used(
        *(svag_tf.MSVAG, {}, "float32", "compiled by XLA", tf.ones((6, 4))),
        jit_compile=True,
    )


def assert_not_used(cls, arguments, dtype, reason, gradient, **compiled):
    def step_of(kernel):
        theta = keras.Variable(np.ones((6, 4)), dtype=dtype)
        return stepper(cls(jit_compile=kernel, **arguments), theta, **compiled)

    step = step_of("auto")
    assert not used(step, gradient)
    step(gradient)
    with pytest.raises(ValueError, match=f"cannot update .*{reason}"):
        step_of("native")(gradient)


@with_build
def test_a_compiled_step_within_which_another_function_is_called():
    """The inner function is traced again for XLA."""
    optimizer, theta = svag_tf.MSVAG(), variable()
    inner = stepper(optimizer, theta)
    inner(tf.ones((6, 4)))
    tf.function(inner, jit_compile=True)(tf.ones((6, 4)))
    assert int(optimizer.iterations) == 2


@with_build
@pytest.mark.parametrize("jit_compile", [True, "auto"])
def test_fit_compiled_by_xla(jit_compile):
    fit(model_of(svag_tf.MSVAG(0.1), jit_compile=jit_compile))


@with_build
def test_it_is_on_one_line_of_the_status_which_rules_differ(monkeypatch):
    operation = native.load().update
    rules = {r for r in known_answer.RULES if "msvas" not in r}
    native.use(native.Build(operation, frozenset(rules), "in use"))
    assert used(stepper(svag_tf.MSVAG(), variable()), tf.ones((6, 4)))
    assert not used(stepper(svag_tf.MSVAS(), variable()), tf.ones((6, 4)))
    with pytest.raises(ValueError, match="is not for msvas_gaussian"):
        svag_tf.MSVAS(jit_compile="native").apply([tf.ones((6, 4))], [variable()])


# What is saved.


@with_build
def test_a_training_continues_with_the_other_kernel(tmp_path):
    """Bit for bit, on a machine with a build or without."""
    whole = fit(model_of(svag_tf.MSVAG(0.1, jit_compile=True)), 4)
    for first, then in ((True, "native"), ("native", True), ("native", "native")):
        model = model_of(svag_tf.MSVAG(0.1, jit_compile=first))
        fit(model)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        again.optimizer.jit_compile = then
        assert_equal(whole, fit(again))


@with_build
@pytest.mark.parametrize("trained_before", sampled([True], [False, True]))
def test_an_export_runs_without_the_build(trained_before, tmp_path):
    model = model_of(svag_tf.MSVAG(0.1))
    if trained_before:
        model.train_on_batch(X[:16], Y[:16])
    svag_tf.export_trainable(model, tmp_path / "exported", X[:16], Y[:16])
    code = f"""
        import numpy as np, tensorflow as tf
        loaded = tf.saved_model.load({str(tmp_path / "exported")!r})
        data = np.load({str(tmp_path / "data.npz")!r})
        for _ in range(3):
            loaded.train(x=data["x"], y=data["y"])
        loaded.save(path={str(tmp_path / "trained")!r})
    """
    np.savez(tmp_path / "data.npz", x=X[:16], y=Y[:16])
    run_python(code)
    again = model_of(svag_tf.MSVAG(0.1))
    svag_tf.restore_trained(again, tmp_path / "trained")
    for _ in range(3):
        model.train_on_batch(X[:16], Y[:16])
    assert_equal(values_of(model), values_of(again))


def run_python(code, *arguments, **variables):
    """Runs a program in a process of its own; an AssertionError there fails here."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.exhaustive
@needs_compiler
def test_mirrored_replicas_have_equal_bits(library):
    code = """
        import sys
        from pathlib import Path
        import keras, numpy as np, tensorflow as tf
        import svag_tf
        from svag_tf import native
        from svag_tf.optimizers import known_answer

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
        update = native.operation_of(Path(sys.argv[1]))
        native.use(native.Build(update, frozenset(known_answer.RULES), "in use"))
        x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
        y = x[:, :3] ** 2
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

        def train(kernel):
            keras.utils.set_random_seed(1)
            with strategy.scope():
                model = keras.Sequential([
                    keras.Input((5,)), keras.layers.Dense(9), keras.layers.Dense(3)
                ])
                model.compile(svag_tf.MSVAG(0.1, jit_compile=kernel), "mse")
            model.fit(x, y, 16, epochs=3, shuffle=False, verbose=0)
            values = []
            for v in (*model.trainable_variables, *model.optimizer.variables):
                first, *others = getattr(v.value, "values", [v.value])
                for other in others:
                    np.testing.assert_array_equal(first.numpy(), other.numpy())
                values.append(first.numpy())
            return values

        for a, b in zip(train(True), train("native")):
            np.testing.assert_array_equal(a, b)
    """
    run_python(code, str(library))


# A build that is missing, damaged or wrong.


def python(*arguments, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, in which a build would be used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(native.VARIABLE)
    native.use(None)
    yield native.folder_of(native.key())
    native.use(None)


def recorded(folder, library_bytes=b"\x7fELF", **changes):
    folder.mkdir(parents=True)
    (folder / "update.so").write_bytes(library_bytes)
    record = {
        "library": "update.so",
        "sha256": native.digest_of(library_bytes),
        "key": native.key(),
        "equal": known_answer.RULES,
        "different": [],
        **changes,
    }
    (folder / native.RECORD).write_text(json.dumps(record))


def assert_without(reason):
    assert native.status().startswith("not in use: ")
    assert reason in native.status() and "\n" not in native.status()
    assert not used(stepper(svag_tf.MSVAG(), variable()), tf.ones((6, 4)))
    with pytest.raises(ValueError, match="the native build is not in use"):
        svag_tf.MSVAG(jit_compile="native").apply([tf.ones((6, 4))], [variable()])


def test_without_a_build(cache):
    assert_without(f"no build for these versions and this machine in {cache}")


def test_it_can_be_turned_off(cache, monkeypatch):
    recorded(cache)
    monkeypatch.setenv(native.VARIABLE, "0")
    assert_without("SVAG_TF_NATIVE=0")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, "NotFoundError"),  # Not a library, though the checksum is right.
        ({"sha256": "0"}, "damaged"),
        ({"key": {}}, "damaged"),
        ({"library": "gone.so"}, "FileNotFoundError"),
    ],
)
def test_a_damaged_or_foreign_build(cache, changes, reason):
    recorded(cache, **changes)
    assert_without(reason)


@pytest.mark.parametrize("text", ["", "[]", "{", "\0"])
def test_a_damaged_record(cache, text):
    recorded(cache)
    (cache / native.RECORD).write_text(text)
    assert_without("")


def test_another_version_has_another_folder(cache, monkeypatch):
    other = {**native.key(), "tensorflow": ["2.0.0"]}
    assert native.folder_of(other) != cache


@pytest.mark.parametrize(
    "compiler, reason",
    [
        ("no-such-compiler", "'no-such-compiler' cannot be run"),
        ("false", "'false' failed: no message"),
        ("true", "The build does not run"),
    ],
)
def test_a_compiler_that_does_not_work(cache, compiler, reason, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    if compiler == "true":
        monkeypatch.setattr(builder, "_compile", lambda path: path.write_bytes(b"x"))
    with pytest.raises(builder.BuildError, match=reason):
        builder.build()
    assert not [*cache.iterdir()]
    assert_without("no build")


def test_the_command_says_that_there_is_no_compiler(tmp_path):
    done = python(
        "-m", "svag_tf.native", CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path)
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("No native build. The C++ compiler 'no-such-compiler'")
    assert last.endswith("Optimizers work without it, as before.")


@pytest.mark.parametrize("code", ["os.kill(os.getpid(), 11)", "sys.exit(1)"])
def test_a_build_that_crashes_is_not_kept(cache, code, monkeypatch):
    """Its process ends; this one goes on."""
    monkeypatch.setattr(builder, "_compile", lambda path: path.write_bytes(b"x"))
    run = subprocess.run
    crash = [sys.executable, "-c", f"import os, sys; {code}"]
    monkeypatch.setattr(subprocess, "run", lambda _, **k: run(crash, **k))
    with pytest.raises(builder.BuildError, match="does not run"):
        builder.build()
    assert not [*cache.iterdir()]


@pytest.mark.exhaustive
@needs_compiler
def test_the_command_builds_and_the_build_is_used_in_other_processes(tmp_path):
    variables = {"XDG_CACHE_HOME": str(tmp_path), native.VARIABLE: "1"}
    for _ in range(2):  # A second time replaces the first.
        done = python("-m", "svag_tf.native", **variables)
        assert done.returncode == 0, done.stderr
        line = done.stdout.splitlines()[-1]
        assert line.startswith(f"in use: {tmp_path}")
    shown = python(
        "-c", "import svag_tf; print(svag_tf.native.status())", **variables
    ).stdout
    assert shown.splitlines()[-1] == line
