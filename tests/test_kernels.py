"""Kernels: the same numbers as the rule op by op, in place, compiled once."""

import gc
import re
import subprocess
import sys
import textwrap
import traceback
import weakref

import keras
import numpy as np
import pytest
from oracle import Oracle
from table import VARIANTS, make
from tiers import sampled

import svag_tf
from svag_tf import kernels
from svag_tf.kernels import programs, sparse, updates

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("kernels are TensorFlow's", allow_module_level=True)

# XLA only differs by contraction to fused multiply-adds.
SAME = {"rtol": 2e-6, "atol": 2e-7}


def variable(shape=(6, 4), seed=0, dtype="float32"):
    values = np.random.default_rng(seed).normal(size=shape)
    return keras.Variable(values, dtype=dtype)


def gradient(t, shape=(6, 4)):
    return tf.constant(np.random.default_rng([1, t]).normal(0.5, 1, shape), tf.float32)


def slices(t, rows=6, width=4, touched=4):
    rng = np.random.default_rng([2, t])
    indices = rng.integers(0, rows, touched)
    values = rng.normal(0.5, 1, (touched, width)).astype("float32")
    return tf.IndexedSlices(values, tf.constant(indices), tf.constant([rows, width]))


def values_of(optimizer, *variables):
    kept = [*variables, *optimizer.m_tilde, *optimizer.v_tilde]
    return [keras.ops.convert_to_numpy(v) for v in kept]


def gradient_specs():
    """Yields the specs of the kernels' gradients, the first tensors in their keys."""
    for key in programs.COMPILED:
        yield next(x for x in key if isinstance(x, tf.TensorSpec))


def assert_same(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, **(tolerance or SAME))


@pytest.mark.parametrize("weight_decay", [None, 0.05])
@pytest.mark.parametrize("variant", sampled(["msvag"], VARIANTS))
def test_compiled_and_op_by_op_give_the_same_numbers(variant, weight_decay):
    results = []
    for jit_compile in ("auto", True, False):
        optimizer = make(variant, jit_compile=jit_compile, weight_decay=weight_decay)
        theta = variable()
        for t in range(20):
            optimizer.apply([gradient(t)], [theta])
        results.append(values_of(optimizer, theta))
    assert_same(results[0], results[1], rtol=0)
    assert_same(results[0], results[2])


def optimized_hlo(optimizer, theta):
    """Returns the text of each program that XLA compiles for a variable's update."""
    programs.COMPILED.clear()
    optimizer.apply([tf.ones_like(theta.value)], [theta])
    (made,) = programs.COMPILED.values()
    variables = (theta, *optimizer.m_tilde, *optimizer.v_tilde)
    return [_optimized_hlo(program, variables) for program in made]


def _optimized_hlo(program, variables):
    def call(gradient, scalars):
        program([v.value.handle for v in variables], gradient, scalars)

    specs = program.structured_input_signature[0][1:]
    arguments = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
    function = tf.function(call, jit_compile=True, autograph=False)
    return function.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")


def assert_in_place(hlo, outputs):
    """One loop writes each variable, and nothing else is so large."""
    aliases = re.search(r"input_output_alias=\{(.*?) \}, ", hlo).group(1)
    assert aliases.count("may-alias") == outputs
    entry = hlo[hlo.index("\nENTRY") :]
    made = re.findall(r"= \(?b?f\d+\[512,256\]\S* (\w[\w-]*)\(", entry)
    # Older versions of XLA call a loop that runs on several threads.
    loops = made.count("fusion") + made.count("call")
    assert loops == outputs
    assert made.count("parameter") + loops == len(made)


@pytest.mark.parametrize("weight_decay", [None, 0.05])
@pytest.mark.parametrize("variant", VARIANTS)
def test_xla_makes_the_update_in_place_without_temporaries(variant, weight_decay):
    optimizer = make(variant, weight_decay=weight_decay)
    (hlo,) = optimized_hlo(optimizer, variable((512, 256)))
    assert_in_place(hlo, outputs=1 + len(optimizer.slots))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "ssd"])
def test_narrow_slots_take_no_temporaries_either(variant):
    """The averages are stored by one program and read by another."""
    optimizer = make(variant, weight_decay=0.05, state_dtype="bfloat16")
    averages, theta = optimized_hlo(optimizer, variable((512, 256)))
    assert_in_place(averages, outputs=len(optimizer.slots))
    assert_in_place(theta, outputs=1)


def test_one_program_serves_all_variables_and_optimizers_of_a_shape_and_rule():
    programs.COMPILED.clear()
    programs.PROGRAMS.clear()
    thetas = [variable(seed=0), variable(seed=1), variable((5,))]
    grads = [gradient(0), gradient(1), gradient(2, (5,))]
    svag_tf.MSVAG(0.1).apply(grads, thetas)
    assert len(programs.PROGRAMS) == 2
    svag_tf.MSVAG(0.2, clipnorm=1.0).apply(grads, thetas)
    svag_tf.MSVAG(0.1, beta=0.8).apply(grads, thetas)
    assert len(programs.PROGRAMS) == 2
    svag_tf.MSVAG(0.1, weight_decay=0.1).apply(grads, thetas)
    svag_tf.MSVAG(0.1, weight_decay=0.2).apply(grads, thetas)
    assert len(programs.PROGRAMS) == 4


class OverridesNoRule(svag_tf.MSVAG):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, 0.5 * learning_rate)


class Scaled(svag_tf.MSVAG):
    """A subclass whose rule depends on more than its constructor's arguments."""

    scale = 2.0

    def direction(self, g, m, v, factor):
        return self.scale * super().direction(g, m, v, factor)


def test_kernels_of_subclasses():
    """Shared if the rule is ours; otherwise the instance's own, and deleted with it."""
    programs.COMPILED.clear()
    programs.PROGRAMS.clear()
    moved = []
    for make_optimizer in (svag_tf.MSVAG, OverridesNoRule, Scaled, Scaled):
        theta = variable(seed=0)
        before = theta.numpy()
        optimizer = make_optimizer(0.1)
        if len(moved) == 3:
            optimizer.scale = 3.0
        optimizer.apply([gradient(0)], [theta])
        moved.append(before - theta.numpy())
    for factor, move in zip((0.5, 2.0, 3.0), moved[1:]):
        np.testing.assert_allclose(move, factor * moved[0], 1e-5, 1e-6)
    assert len(programs.COMPILED) == 1
    assert len(programs.PROGRAMS) == 3
    # The same program is compiled once for all optimizers.
    Scaled(0.3).apply([gradient(0)], [theta])
    assert len(programs.PROGRAMS) == 3
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


def test_a_changed_learning_rate_makes_no_kernel_anew():
    """Also of a subclass with a rule of its own, which may depend on anything."""
    traced = []

    class Traced(svag_tf.MSVAG):
        def direction(self, g, m, v, factor):
            traced.append(factor)
            return m

    optimizer, theta = Traced(1.0), variable()
    for rate in (1.0, 0.5):
        before = theta.numpy()
        optimizer.learning_rate = rate
        optimizer.apply([gradient(0)], [theta])
        np.testing.assert_allclose(before - theta, rate * gradient(0), 1e-5, 1e-6)
    assert len(traced) == 1


class Powered(svag_tf.MSVAG):
    """A step of beta * power[0]; `power` may be any object with an item 0."""

    def __init__(self, learning_rate=0.1, beta=0.9, power=None, **kwargs):
        super().__init__(learning_rate, beta, **kwargs)
        self.power = power

    def direction(self, g, m, v, factor):
        return keras.ops.full_like(m, self.beta * float(self.power[0]))


def in_the_package(cls):
    return type(cls.__name__, (cls,), {"__module__": "svag_tf.optimizers.toy"})


def step_of(optimizer):
    theta = keras.Variable([0.0])
    optimizer.apply([tf.ones(1)], [theta])
    return -float(theta.numpy()[0])


@pytest.mark.parametrize("cls", [Powered, in_the_package(Powered)])
def test_a_rule_sees_the_arguments_of_its_own_optimizer(cls):
    """Also those whose text does not show all of them, and changed ones."""

    class Printed(list):
        def __repr__(self):
            return "the same"

    for power in ([1.0], [5.0], {0: 2}, {0: 7}, Printed([3.0]), Printed([4.0])):
        optimizer = cls(1.0, power=power)
        assert step_of(optimizer) == pytest.approx(0.9 * power[0])
    for beta in (0.5, 0.99):
        assert step_of(cls(1.0, beta, [1.0])) == pytest.approx(beta)
    theta = keras.Variable([0.0])
    optimizer = cls(1.0, power=[1.0])
    optimizer.apply([tf.ones(1)], [theta])
    optimizer.power, optimizer.beta = [3.0], 0.5
    optimizer.apply([tf.ones(1)], [theta])
    assert theta.numpy() == pytest.approx(-0.9 - 1.5)


def test_errors_of_a_rule_that_other_optimizers_share():
    """An argument kept under another name, and a variable of one optimizer."""
    optimizer = in_the_package(Powered)(power=[1.0])
    del optimizer.power
    with pytest.raises(AttributeError, match="power"):
        step_of(optimizer)

    class Reads(svag_tf.MSVAG):
        def direction(self, g, m, v, factor):
            return self.learning_rate * m

    assert step_of(Reads(2.0)) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="The rule of Reads reads a variable"):
        step_of(in_the_package(Reads)(2.0))


def test_a_schedule_compiles_and_traces_nothing_again():
    programs.COMPILED.clear()
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 10)
    optimizer, theta = svag_tf.MSVAG(schedule), variable()
    optimizer.build([theta])
    step = tf.function(lambda g: optimizer.apply([g], [theta]))
    oracle = Oracle("msvag", 1.0, 0.9, theta.shape)
    expected = np.array(theta)
    for t in range(12):
        rate = float(schedule(t))
        step(gradient(t))
        expected = expected - rate * oracle.update(gradient(t))
    np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert step.experimental_get_tracing_count() == 1
    assert len(programs.COMPILED) == 1


@pytest.mark.parametrize("sparse_updates", ["exact", "lazy"])
def test_a_gradient_whose_shape_shows_in_the_run_only(sparse_updates):
    """It uses the kernel of its variable, and another shape is not broadcast."""
    programs.COMPILED.clear()
    optimizer, theta = svag_tf.MSVAG(sparse_updates=sparse_updates), variable()
    optimizer.build([theta])

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def dense(gradient):
        optimizer.apply([gradient], [theta])

    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec([None], tf.int64)])
    def sparse(values, indices):
        optimizer.apply([tf.IndexedSlices(values, indices, [6, 4])], [theta])

    dense(gradient(0))
    sparse(slices(1).values, slices(1).indices)
    before = theta.numpy()
    for wrong in (tf.ones(()), tf.ones((1, 4))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="compatible"):
            dense(wrong)
    np.testing.assert_array_equal(theta.numpy(), before)
    with pytest.raises(tf.errors.InvalidArgumentError, match="compatible"):
        sparse(tf.ones((2, 1)), [0, 1])
    assert {tuple(s.shape) for s in gradient_specs()} <= {(6, 4), (), (None, 4)}


def test_the_shape_of_a_sparse_gradient_is_checked():
    optimizer, theta = svag_tf.MSVAG(), variable()
    for values, dense_shape in (((2, 1), (6, 4)), ((2, 4), (5, 4))):
        slices = tf.IndexedSlices(
            tf.ones(values), tf.constant([0, 1]), tf.constant(dense_shape)
        )
        with pytest.raises(
            ValueError, match=r"must have the variable's shape, \(6, 4\)"
        ):
            optimizer.apply([slices], [theta])


@pytest.mark.parametrize(
    "arguments, shared",
    sampled(
        lambda case: case[0]["variant"] == "msvag",
        [
            ({"variant": "ssd"}, 4),
            # Row counts separate matrices from all other variables.
            ({"variant": "svag", "sparse_updates": "lazy"}, 5),
            ({"variant": "msvas_gaussian", "weight_decay": 0.05}, 4),
            ({"variant": "msvag", "weight_decay": 0.05, "state_dtype": "bfloat16"}, 4),
        ],
    ),
)
def test_many_shapes_share_kernels(arguments, shared, monkeypatch):
    """Small variables are updated together; the numbers are the same."""
    shapes = [(), (1,), (300, 300), (0, 3), (2, 2, 2), *((n, 30) for n in range(4, 10))]
    results = []
    # The large one and the one of size 0; arrays of 2 and of 8 rows for all others.
    monkeypatch.setattr(updates, "_ROWS", 8)
    for many, kernels_made in ((10, shared), (11, 11)):
        monkeypatch.setattr(kernels, "MANY_SHAPES", many)
        programs.COMPILED.clear()
        optimizer = make(**arguments)
        thetas = [variable(shape) for shape in shapes]
        optimizer.build(thetas)
        optimizer.apply([gradient(9, shape) for shape in shapes[2:6]], thetas[2:6])
        for t in range(3):
            optimizer.apply([gradient(t, shape) for shape in shapes], thetas)
        results.append(values_of(optimizer, *thetas))
        assert len(programs.COMPILED) == kernels_made
    assert_same(*results, rtol=1e-6)


def test_only_dense_gradients_are_applied_together(monkeypatch):
    """A table that is updated lazily has scalars of its own for each row."""
    results = []
    for many in (0, 100):
        monkeypatch.setattr(kernels, "MANY_SHAPES", many)
        for sparse_updates in ("exact", "lazy"):
            optimizer = svag_tf.MSVAG(0.1, sparse_updates=sparse_updates)
            theta = variable()
            for t in range(4):
                optimizer.apply([slices(t)], [theta])
                optimizer.apply([gradient(t)], [theta])
            results.append(values_of(optimizer, theta))
    assert_same(results[0], results[2])
    assert_same(results[1], results[3])


def test_a_kernel_keeps_no_optimizer_alive():
    optimizer, theta = svag_tf.MSVAG(), variable()
    optimizer.apply([gradient(0)], [theta])
    alive = [weakref.ref(optimizer), weakref.ref(theta)]
    del optimizer, theta
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_many_optimizers_leave_nothing_behind():
    """Also of classes that are defined anew for each, and with many betas."""
    programs.COMPILED.clear()
    programs.PROGRAMS.clear()
    alive, names = [], set()
    for beta in (0.5, 0.9, 0.99):

        class NewRate(svag_tf.MSVAG):
            def update_step(self, gradient, variable, learning_rate):
                super().update_step(gradient, variable, 0.5 * learning_rate)

        class NewRule(NewRate):
            def direction(self, g, m, v, factor):
                return 0.5 * super().direction(g, m, v, factor)

        theta = variable()
        for cls in (svag_tf.MSVAG, NewRate, NewRule):
            optimizer = cls(0.1, beta)
            optimizer.apply([gradient(0)], [theta])
            alive.append(weakref.ref(optimizer))
            names.add(optimizer.update_counts.value.name)
        alive += map(weakref.ref, (NewRate, NewRule, theta))
    del cls, optimizer, theta, NewRate, NewRule
    gc.collect()
    assert not any(ref() for ref in alive)
    assert len(names) == 1  # TensorFlow keeps memory for each for ever.
    assert len(programs.PROGRAMS) == 2  # One for each rule.
    assert len(programs.COMPILED) == 3  # The names of the first, one for each beta.


@pytest.mark.parametrize("jit_compile", ["auto", False])
@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_an_old_gradient_is_forgotten(beta, jit_compile):
    """v~ must not underflow before m~ does, or the sign of m~ would count fully."""
    optimizer = svag_tf.MSVAS(1.0, beta=beta, jit_compile=jit_compile)
    theta = keras.Variable(np.zeros(6, "float32"))
    optimizer.build([theta])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [theta]))
    step(tf.constant([1e-15, 1e-8, 1e-4, 1.0, 1e4, 1e15]))
    for _ in range(400):
        step(tf.zeros(6))
    before = theta.numpy()
    for _ in range(1600):
        step(tf.zeros(6))
    np.testing.assert_allclose(theta.numpy(), before, rtol=1e-5)


def test_where_xla_does_not_compile_the_rule_runs_op_by_op(monkeypatch):
    results = []
    for serves in (True, False):
        monkeypatch.setattr(programs, "xla_compiles_for", lambda device, s=serves: s)
        programs.COMPILED.clear()
        optimizer, theta = svag_tf.MSVAG(), variable()
        for t in range(5):
            optimizer.apply([gradient(t)], [theta])
        assert bool(programs.COMPILED) is serves
        results.append(values_of(optimizer, theta))
    assert_same(*results)


def test_a_device_that_xla_does_not_know_is_told_apart():
    assert programs.xla_compiles_for("CPU")
    assert not programs.xla_compiles_for("NOSUCH")


@pytest.mark.parametrize("value", ["yes", "Auto", 1, None])
def test_jit_compile_is_checked(value):
    error = ValueError if isinstance(value, str) else TypeError
    choices = "'auto', 'native', True, False"
    with pytest.raises(error, match=f"{choices}.*jit_compile={value!r}"):
        svag_tf.MSVAG(jit_compile=value)


@pytest.mark.parametrize("value", ["sparse", True, None])
def test_sparse_updates_is_checked(value):
    error = ValueError if isinstance(value, str) else TypeError
    with pytest.raises(error, match=f"'exact', 'lazy'.*sparse_updates={value!r}"):
        svag_tf.MSVAG(sparse_updates=value)


def test_weight_decay_leaves_excluded_variables_alone():
    optimizer = svag_tf.MSVAG(0.1, weight_decay=0.5)
    decayed, excluded = variable(seed=0), variable(seed=1)
    optimizer.exclude_from_weight_decay(var_list=[excluded])
    before = [decayed.numpy(), excluded.numpy()]
    optimizer.apply([tf.zeros((6, 4))] * 2, [decayed, excluded])
    np.testing.assert_allclose(decayed.numpy(), 0.95 * before[0], rtol=1e-6)
    np.testing.assert_array_equal(excluded.numpy(), before[1])


@pytest.mark.slow
def test_under_op_determinism():
    code = """
        import numpy as np, tensorflow as tf, keras, svag_tf
        tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(svag_tf.MSVAG(), "mse")
        model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
        from svag_tf.kernels import programs
        assert programs.COMPILED
    """
    run_python(code)


def run_python(code):
    """Runs a program in a process of its own; an AssertionError there fails here."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_variables_on_another_device():
    """Kernels run where the variable is; with slots elsewhere, op by op."""
    code = """
        import keras, numpy as np, svag_tf, tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
        sparse = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), [4, 2])
        for on_one_device in (True, False):
            for gradient in (tf.ones((4, 2)), sparse):
                for wrap in (lambda f: f, tf.function):
                    with tf.device("CPU:1"):
                        theta = keras.Variable(np.ones((4, 2), "float32"))
                        optimizer = svag_tf.MSVAG(0.25)
                        if on_one_device:
                            optimizer.build([theta])
                    optimizer.build([theta])
                    wrap(lambda: optimizer.apply([gradient], [theta]))()
                    expected = 1 - 0.25 * tf.convert_to_tensor(gradient).numpy()
                    np.testing.assert_allclose(theta.numpy(), expected)
    """
    run_python(code)


# Sparse gradients.


@pytest.mark.parametrize("variant", sampled(["msvag", "ssd"], VARIANTS))
def test_an_exact_sparse_update_makes_no_dense_gradient(variant):
    """Nothing of the table's size is allocated: the kernel works in place."""
    optimizer, table = make(variant), variable((1000, 4))
    optimizer.build([table])

    @tf.function
    def step(gradient):
        optimizer.apply([gradient], [table])

    graph = step.get_concrete_function(slices(0, rows=1000)).graph
    step(slices(0, rows=1000))
    for op in graph.get_operations():
        for output in op.outputs:
            if output.dtype != tf.resource and output.shape.rank is not None:
                assert output.shape.num_elements() in (None, *range(4000)), op


@pytest.mark.parametrize("variant", sampled(["msvag", "mssd"], VARIANTS))
def test_a_lazy_update_is_that_of_each_row_by_itself(variant):
    """An oracle for each row, which counts the row's own updates."""
    optimizer = make(variant, sparse_updates="lazy", weight_decay=0.05)
    table = variable()
    expected = table.numpy().astype(np.float64)
    rate = float(optimizer.learning_rate)
    oracles = [Oracle(variant, rate, 0.9, (4,)) for _ in range(6)]
    for t in range(40):
        dense = t % 10 == 7
        grads = gradient(t) if dense else slices(t)
        touched = range(6) if dense else sorted(set(np.array(grads.indices)))
        summed = tf.convert_to_tensor(grads).numpy()
        before = values_of(optimizer, table)
        optimizer.apply([grads], [table])
        for row in touched:
            expected[row] -= rate * 0.05 * expected[row]
            expected[row] -= oracles[row].update(summed[row])
        untouched = sorted({*range(6)} - {*touched})
        for old, new in zip(before, values_of(optimizer, table)):
            np.testing.assert_array_equal(old[untouched], new[untouched])
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_lazy_and_exact_agree_while_every_row_is_touched():
    results = []
    for sparse_updates in ("exact", "lazy"):
        optimizer = svag_tf.MSVAG(sparse_updates=sparse_updates)
        table = variable()
        for t in range(10):
            grads = tf.IndexedSlices(gradient(t), tf.range(6), tf.constant([6, 4]))
            optimizer.apply([grads], [table])
        results.append(values_of(optimizer, table))
    assert_same(*results)


@pytest.mark.parametrize("touched", [1, 9])
@pytest.mark.parametrize("sparse_updates", ["exact", "lazy"])
def test_any_number_of_indices(sparse_updates, touched):
    results = []
    for dense in (False, True):
        optimizer = svag_tf.MSVAG(sparse_updates=sparse_updates)
        table = variable((3, 4))
        grads = slices(5, rows=3, touched=touched)
        optimizer.apply([tf.convert_to_tensor(grads) if dense else grads], [table])
        results.append(values_of(optimizer, table))
    assert_same(*results)


def rows_applied(sparse_updates, wrap):
    optimizer = svag_tf.MSVAG(0.1, sparse_updates=sparse_updates)
    theta = variable((30, 3))
    optimizer.build([theta])

    @wrap
    def step(values, indices):
        optimizer.apply([tf.IndexedSlices(values, indices, [30, 3])], [theta])

    for n in (5, 8, 33, 7, 6):
        gradient = slices(n, 30, 3, n)
        step(gradient.values, gradient.indices)
    return values_of(optimizer, theta)


@pytest.mark.parametrize("sparse_updates", sampled(["lazy"], ["exact", "lazy"]))
def test_rows_are_compiled_for_powers_of_two_of_them(sparse_updates):
    """The bits do not depend on whether their number is known, or on a graph."""
    programs.COMPILED.clear()
    specs = [tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int64)]
    known, unknown = tf.function, tf.function(input_signature=specs)
    results = [rows_applied(sparse_updates, f) for f in (known, unknown, lambda f: f)]
    assert_same(results[0], results[1], rtol=0)
    assert_same(results[0], results[2], rtol=0)
    rows = {spec.shape[0] for spec in gradient_specs() if spec.shape.rank}
    assert rows == {8, 64, None}


def test_xla_makes_no_loop_over_indices():
    """Its `tf.unique` is one: a step for each index, on a GPU as well."""

    @tf.function(jit_compile=True)
    def summed(values, indices):
        return sparse._summed_rows(tf.IndexedSlices(values, indices), 0)

    compiled = summed.experimental_get_compiler_ir(tf.ones((9, 2)), tf.range(9))
    assert " while(" not in compiled(stage="optimized_hlo")


def embedding_model(sparse_updates, jit_compile="auto", **arguments):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(30, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    optimizer = svag_tf.MSVAG(0.05, sparse_updates=sparse_updates, **arguments)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model


def fit(model, epochs=2):
    x = np.random.default_rng(0).integers(0, 30, (64, 5))
    model.fit(x, x.mean(1) / 30, 16, epochs=epochs, shuffle=False, verbose=0)
    return [*model.get_weights(), *values_of(model.optimizer)]


@pytest.mark.parametrize("sparse_updates", sampled(["lazy"], ["exact", "lazy"]))
def test_an_embedding_in_fit_compiled_or_not(sparse_updates):
    results = [
        fit(embedding_model(sparse_updates, jit_compile))
        for jit_compile in (False, True, "auto")
    ]
    assert_same(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert_same(results[0], results[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    sampled(
        [{"clipnorm": 0.1}],
        [
            {"clipnorm": 0.1},
            {"gradient_accumulation_steps": 2},
            {"loss_scale_factor": 8.0},
        ],
    ),
)
def test_lazy_does_as_exact_where_gradients_are_made_dense(arguments):
    results = [fit(embedding_model(kind, **arguments)) for kind in ("exact", "lazy")]
    assert_same(*results)


@pytest.mark.parametrize("sparse_updates", sampled(["lazy"], ["exact", "lazy"]))
def test_lazy_counts_are_saved(sparse_updates, tmp_path):
    whole = fit(embedding_model(sparse_updates), epochs=4)
    model = embedding_model(sparse_updates)
    fit(model)
    model.save(tmp_path / "model.keras")
    again = fit(keras.models.load_model(tmp_path / "model.keras"))
    assert_same(whole, again, rtol=0)


# Low-precision slots.


def test_bfloat16_slots_hold_what_the_rounded_averages_are():
    optimizer = svag_tf.MSVAG(0.1, state_dtype="bfloat16")
    theta = variable((200,))
    start, m, v = theta.numpy().astype(np.float64), 0.0, 0.0
    for t in range(1, 6):
        g = gradient(t, (200,)).numpy().astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
        m, v = (tf.cast(x, tf.bfloat16).numpy().astype(np.float64) for x in (m, v))
        mean, square = m / (1 - 0.9**t), v / (1 - 0.9**t)
        if t > 1:
            rho = 0.1 * (1 + 0.9**t) / (1.9 * (1 - 0.9**t))
            noise = rho / (1 - rho) * np.maximum(square - mean**2, 0)
        else:
            noise = 0.0
        start -= 0.1 * mean**3 / (mean**2 + noise)
        optimizer.apply([gradient(t, (200,))], [theta])
    assert optimizer.m_tilde[0].dtype == optimizer.v_tilde[0].dtype == "bfloat16"
    # A float32 average next to the middle of two bfloat16 numbers may go either way.
    near = np.abs(theta.numpy() - start) <= 1e-5 * (1 + np.abs(start))
    assert near.mean() > 0.98
    np.testing.assert_allclose(theta.numpy(), start, rtol=0.01, atol=0.01)


# Replicas.


@pytest.mark.exhaustive
def test_mirrored_replicas_stay_equal_and_equal_one_device():
    code = """
        import keras, numpy as np, svag_tf, tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
        x = np.random.default_rng(0).integers(0, 50, (64, 3))

        def train(cls, arguments):
            keras.utils.set_random_seed(1)
            model = keras.Sequential([
                keras.Input((3,), dtype="int32"),
                keras.layers.Embedding(50, 4),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ])
            model.compile(cls(0.05, **arguments), "mse")
            model.fit(x, x.mean(1) / 50, 16, epochs=2, shuffle=False, verbose=0)
            return model

        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        for cls, arguments in (
            (svag_tf.MSVAG, {"weight_decay": 0.01}),
            (svag_tf.MSVAG, {"sparse_updates": "lazy"}),
            (svag_tf.SSD, {"jit_compile": False}),
        ):
            one = train(cls, arguments)
            with strategy.scope():
                two = train(cls, arguments)
            for a, b in zip(one.get_weights(), two.get_weights()):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            replicated = 0
            for v in (*two.trainable_variables, *two.optimizer.variables):
                first, *others = getattr(v.value, "values", [v.value])
                replicated += len(others)
                for other in others:
                    np.testing.assert_array_equal(first.numpy(), other.numpy())
            assert replicated >= len(two.trainable_variables)
    """
    run_python(code)


def test_autograph_does_not_convert_an_update():
    names = set()

    class Watched(svag_tf.MSVAG):
        def update_step(self, gradient, variable, learning_rate):
            names.update(frame.name for frame in traceback.extract_stack())
            super().update_step(gradient, variable, learning_rate)

    optimizer, theta = Watched(0.1), keras.Variable([1.0, 2.0])

    @tf.function
    def step():
        optimizer.apply([tf.ones(2)], [theta])

    step()
    assert "tf__step" in names and "apply_reduced" in names
    assert "tf__apply" not in names and "tf__apply_reduced" not in names


def test_an_update_waits_for_all_gradients_by_one_operation():
    optimizer = svag_tf.MSVAG(0.1)
    variables = [keras.Variable([1.0, 2.0]) for _ in range(20)]
    optimizer.build(variables)

    @tf.function
    def step(gradients):
        optimizer.apply([2.0 * g for g in gradients], variables)

    graph = step.get_concrete_function([tf.ones(2)] * len(variables)).graph
    edges = sum(len(operation.control_inputs) for operation in graph.get_operations())
    assert len(variables) <= edges < 5 * len(variables)
