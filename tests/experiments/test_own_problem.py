"""A user's own problem: checked before anything runs; changes are noticed."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import optuna
import pytest
from test_train_script import ROOT, run
from tiers import sampled

from svag_tf.experiments.comparison.compare import compare
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import PROBLEMS, Problem, made_of
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.training import train as training
from svag_tf.experiments.training.config import checked
from svag_tf.experiments.training.train import train

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
GOOD = Data(X[:40], Y[:40], X[40:], Y[40:])
CATEGORICAL = keras.losses.CategoricalCrossentropy(from_logits=True)


def dense(outputs=3, **arguments):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(outputs, **arguments)]
    )


def spoiled(field, index, value):
    array = np.array(getattr(GOOD, field), "float32")
    array[index] = value
    return GOOD._replace(**{field: array})


def fails(data_dir=None):
    return int("a")


@pytest.fixture
def run_of(make_config, monkeypatch, tmp_path):
    """`run_of(load, build, ...)`: trains such a problem for an epoch."""

    def trained(load=lambda _: GOOD, build=dense, folder="run", fresh=False, **others):
        if not callable(load):
            data, load = load, lambda _: data
        monkeypatch.setitem(PROBLEMS, "own", Problem(load, build, **others))
        config = make_config(problem="own", epochs=1)
        return train(config, tmp_path / folder, lambda row: None, fresh=fresh)

    return trained


@pytest.mark.parametrize(
    "data, message",
    [
        (None, "must return Data(x_train, y_train, x_test, y_test), four arrays. "
         "Received: NoneType"),
        (X, "four arrays. Received: ndarray"),
        ((X, Y), "four arrays. Received: tuple of 2"),
        (((X, Y), (X, Y)), "four arrays. Received: tuple of 2"),
        (GOOD._replace(y_train=Y[:39]), "x_train and y_train of the problem 'own' must "
         "have the same length. Received: 40 inputs and 39 labels"),
        (GOOD._replace(y_test=Y), "x_test and y_test of the problem 'own' must have "
         "the same length. Received: 20 inputs and 60 labels"),
        (GOOD._replace(x_test=X[:0], y_test=Y[:0]), "x_test of the problem 'own' must "
         "not be empty"),
        (GOOD._replace(y_train=Y[:40].astype(str)), "y_train of the problem 'own' must "
         "hold real numbers. Received: <U11, such as"),
        (GOOD._replace(y_train=Y[:40].astype("m8[s]")), "y_train of the problem 'own' "
         "must hold real numbers. Received: timedelta64[s]"),
        (GOOD._replace(y_test=Y[40:].astype("complex64")), "y_test of the problem "
         "'own' must hold real numbers. Received: complex64"),
        (GOOD._replace(x_train=3.0), "x_train of the problem 'own' must be an array "
         "with the examples along its first axis"),
        (GOOD._replace(y_train=None), "y_train of the problem 'own' must be an array"),
        (GOOD._replace(x_train=[[1.0], [1.0, 2.0]]), "returned no arrays: ValueError"),
        (spoiled("x_train", (7, 2), np.nan), "x_train of the problem 'own' must be "
         "finite. Received: nan at [7, 2], and 1 such numbers in all"),
        (spoiled("x_test", (3, 0), -np.inf), "x_test of the problem 'own' must be "
         "finite. Received: -inf at [3, 0]"),
        (GOOD._replace(x_train=X[:40, :3]), "The model of the problem 'own' does not "
         "take inputs of shape (32, 3) and dtype float32 (x_train)"),
        (GOOD._replace(x_test=X[40:, :3]), "does not take inputs of shape (20, 3) and "
         "dtype float32 (x_test)"),
        (spoiled("y_train", 5, 3), "y_train of the problem 'own' must hold whole "
         "numbers in [0, 2]: the model has 3 outputs. Received: numbers in [0.0, 3.0]"),
        (spoiled("y_test", 5, -1), "y_test of the problem 'own' must hold whole "
         "numbers in [0, 2]"),
        (spoiled("y_train", 5, 0.5), "must hold whole numbers in [0, 2]: the model has "
         "3 outputs. Received: numbers in [0.0, 1.0], not all whole"),
        (GOOD._replace(y_train=np.eye(3)[Y[:40]]), "y_train of the problem 'own' must "
         "hold the number of a class for each output, in the shape (n). Received: "
         "(40, 3). Labels that are vectors need another loss"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(run_of, tmp_path, data, message):
    with pytest.raises(ExperimentError, match=re.escape(message)) as raised:
        run_of(data)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = keras.layers.Dense(3)

    def call(self, x):
        return self.out(x)


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [keras.layers.Dense(3)(x), keras.layers.Dense(3)(x)])


def wrong_inside():
    x = keras.Input((4,))
    return keras.Model(x, keras.layers.Conv2D(3, 3)(x))


def wrong_in_training():
    dropout = keras.layers.Dropout(0.5, noise_shape=(7, 4))
    return keras.Sequential([keras.Input((4,)), dropout, keras.layers.Dense(3)])


ONE = dense()


@pytest.mark.parametrize(
    "build, others, message",
    [
        (lambda: None, {}, "build() of the problem 'own' must return a keras.Model. "
         "Received: NoneType"),
        (lambda: dense, {}, "must return a keras.Model. Received: function"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), {}, "must return a model "
         "that has its weights"),
        (Unbuilt, {}, "must return a model that has its weights"),
        (lambda: keras.Sequential([keras.Input((4,)), keras.layers.Flatten()]), {},
         "must return a model with weights to train"),
        (wrong_inside, {}, f"build() of the problem 'own' failed at {__file__}:"),
        (two_outputs, {}, "must have one output. Received: 2"),
        (wrong_in_training, {}, "The model of the problem 'own' does not take inputs "
         "of shape (32, 4) and dtype float32 (x_train)"),
        (lambda: dense(bias_initializer=keras.initializers.Constant(np.nan)), {},
         "The loss of the problem 'own' must be finite before training. Received: nan"),
        (dense, {"loss": keras.losses.MeanSquaredError()}, "The loss of the problem "
         "'own' must be a function without arguments"),
        (dense, {"loss": lambda: None}, "must be a function without arguments that"),
        (dense, {"loss": lambda: "no such loss"}, "must be a function without argum"),
        (dense, {"loss": lambda: CATEGORICAL}, "y_train of the problem 'own' must have "
         "the shape of the outputs, (n, 3). Received: (40,)"),
        (dense, {"loss": keras.losses.MeanSquaredError}, "must have the shape of the "
         "outputs, (n, 3)"),
        (dense, {"loss": lambda: lambda y, output: 1 / 0}, "The loss of the problem "
         f"'own' does not take labels of shape (32,) and outputs of shape (32, 3) at "
         f"{__file__}:"),
        (dense, {"prepare_train": lambda x, rng: x / fails()}, "prepare_train of the "
         f"problem 'own' failed at {__file__}:"),
        (dense, {"prepare_test": lambda x: x}, "prepare_test of the problem 'own' "
         "failed"),
        (dense, {"loss": lambda: "mse"}, "must have the shape of the outputs, (n, 3)"),
        (lambda: dense(1), {"load": GOOD._replace(y_test=Y[40:] + 1),
                            "loss": keras.losses.BinaryCrossentropy},
         "y_test of the problem 'own' must hold numbers in [0, 1] for this loss"),
        (lambda: dense(1), {"loss": lambda: "mse"}, None),
        (lambda: dense(1), {"loss": keras.losses.BinaryCrossentropy}, None),
    ],
)  # fmt: skip
def test_models_and_losses_that_cannot_be_used(
    run_of, tmp_path, build, others, message
):
    if message is None:  # These arguments are valid.
        run_of(build=build, **others)
        return
    with pytest.raises(ExperimentError, match=re.escape(message)) as raised:
        run_of(build=build, **others)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_quantities_have_no_accuracy(run_of):
    y = X[:, :1] + 0.25
    data = Data(X[:40], y[:40], X[40:], y[40:])
    others = {"build": lambda: dense(1), "loss": lambda: "mse"}
    with pytest.raises(ExperimentError, match=r"say Problem\(load, build, \.\.\., acc"):
        run_of(data, **others)
    rows = run_of(data, accuracy=False, **others)
    assert np.isnan(rows[-1]["test_accuracy"])


def test_every_call_must_build_a_new_model(run_of):
    run_of(build=lambda: ONE, folder="a")
    with pytest.raises(ExperimentError, match="must return a new model at each call"):
        run_of(build=lambda: ONE, folder="b")


def test_an_error_in_load_names_its_line(run_of):
    line = fails.__code__.co_firstlineno + 1
    message = rf"^load\(\) of the problem 'own' failed at {__file__}:{line}: ValueError"
    with pytest.raises(ExperimentError, match=message):
        run_of(fails)
    with pytest.raises(ExperimentError, match=rf"{__file__}:\d+: SystemExit: no data"):
        run_of(lambda _: sys.exit("no data"))


def test_what_is_no_problem(make_config, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "own", (fails, dense))
    with pytest.raises(ExperimentError, match=r"PROBLEMS\['own'\] must be a Problem"):
        checked(make_config(problem="own"))
    for measure, accuracy in (("accuracy", True), ("test_accuracy", False)):
        with pytest.raises(ValueError, match=r"tuned_by must be one of .*Received"):
            Problem(fails, dense, tuned_by=measure, accuracy=accuracy)


def test_the_trial_leaves_the_model_as_it_was(make_config):
    """State that moves with each batch, dropout's random state and all weights."""
    config = checked(make_config(problem="tiny"))
    data, model = training.prepared(config)
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    parts = made_of.made_of(config.problem, data, model)
    assert made_of.made_of(config.problem, data, model) == parts
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


# What a problem is made of.


class Own(keras.Model):
    """A layer whose get_config is empty."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.out = keras.layers.Dense(3)
        self(X[:1])

    def call(self, x):
        return self.scale * self.out(x)


def own(scale=1.0):
    """As after an edit of `call`."""
    Own.scale = scale
    return Own()


def scaled_by(factor):
    """As after an edit: the same name, another function."""
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Lambda(lambda x: factor * x),
         keras.layers.Dense(3)]
    )  # fmt: skip


def branches(swapped=False):
    x = keras.Input((4,))
    a, b = keras.layers.Dense(4)(x), keras.layers.Dense(4, "relu")(x)
    a = keras.layers.Dropout(0.1)(b if swapped else a)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.Add()([a, b])))


def twice(x, rng):
    return 2 * x


def noisy(x, rng):
    return x + rng.normal(size=x.shape).astype("float32")


@pytest.mark.parametrize(
    "before, after, parts",
    sampled(lambda case: case[2] in (["x_test"], ["model, layer 1"], ["loss"]), [
        ({}, {"load": GOOD._replace(y_train=1 - Y[:40])}, ["y_train", "loss before"]),
        ({}, {"load": GOOD._replace(x_test=X[40:] + 1)}, ["x_test"]),
        ({}, {"load": Data(X[:30], Y[:30], X[40:], Y[40:])}, ["x_train", "y_train"]),
        ({}, {"build": lambda: dense(4)},
         ["model, layer 1", "model, its weights", "loss before training"]),
        ({}, {"build": lambda: dense(activation="tanh")}, ["model, layer 1"]),
        ({}, {"build": lambda: dense(kernel_regularizer="l2")}, ["model, layer 1"]),
        ({}, {"build": lambda: dense(kernel_initializer="ones")}, ["model, layer 1"]),
        ({"build": own}, {"build": lambda: own(2.0)}, ["loss before training"]),
        ({"build": lambda: scaled_by(1)}, {"build": lambda: scaled_by(3)},
         ["loss before training"]),
        ({"build": branches}, {"build": lambda: branches(True)},
         ["model, its structure"]),
        ({}, {"loss": lambda: keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=2)}, ["loss"]),
        ({"accuracy": True}, {"accuracy": False}, ["accuracy"]),
        ({}, {"prepare_train": twice}, ["prepare_train"]),
        ({"prepare_test": twice}, {"prepare_test": noisy}, ["prepare_test"]),
    ]),
)  # fmt: skip
def test_a_run_of_something_else_is_refused(run_of, tmp_path, before, after, parts):
    run_of(**before)
    metrics = (tmp_path / "run" / "metrics.csv").read_bytes()
    run_of(**before)  # As it was: the run is complete.
    with pytest.raises(ExperimentError, match="holds a run of other data or") as raised:
        run_of(**after)
    changed = [line.strip() for line in str(raised.value).splitlines()[1:]]
    for part in parts:
        assert any(line.startswith(part) for line in changed), changed
    assert not [line for line in changed if "structure" in line] or "structure" in str(
        parts
    )
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == metrics
    run_of(**after, fresh=True)
    run_of(**after)


@pytest.mark.exhaustive
def test_fresh_leaves_a_run_of_the_same(run_of, tmp_path):
    run_of()
    state = tmp_path / "run" / "checkpoints" / "epoch_1" / "state.json"
    before = state.stat().st_mtime_ns
    run_of(fresh=True)
    assert state.stat().st_mtime_ns == before
    (tmp_path / "run" / "export" / "inference").mkdir(parents=True)
    run_of(build=lambda: dense(4), fresh=True)
    assert not (tmp_path / "run" / "export").exists()


def test_an_earlier_run_that_does_not_say(run_of, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "made_of", lambda *_, **__: {})
        run_of()
    with pytest.raises(ExperimentError, match="does not say which data and model"):
        run_of()
    run_of(fresh=True)


@pytest.mark.exhaustive
def test_numbers_in_names_do_not_matter(run_of):
    """Keras numbers its automatic names; the user's own are kept."""
    for build in (dense, branches, own):
        run_of(build=build, folder=build.__name__)
        [dense() for _ in range(3)]
        run_of(build=build, folder=build.__name__)
    with pytest.raises(ExperimentError, match="model, its weights: 2 "):
        run_of(build=lambda: dense(name="mine"), folder="dense")


CODE = """
import sys
import keras
from svag_tf.experiments.problems import made_of
from svag_tf.experiments.training.config import checked
from svag_tf.experiments.training.train import prepared
from svag_tf.experiments.config import load_config
import json
for _ in range(int(sys.argv[1])):
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
config = load_config(sys.argv[2])
config.train_examples, config.test_examples = 200, 100
config = checked(config)
print(json.dumps(made_of.made_of(config.problem, *prepared(config))))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sampled(["digits"], ["digits", "quadratic_deep"]))
def test_the_same_in_every_process(name):
    printed = [
        subprocess.run(
            [sys.executable, "-c", CODE, n, name],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]
        for n in ("0", "2")
    ]  # fmt: skip
    first, second = map(json.loads, printed)
    assert made_of.differences(first, second) == []
    assert first == second


def test_random_preparation_is_left_out():
    state = np.random.default_rng(0)
    assert made_of._prepared(lambda x, rng: x + state.random(x.shape), X) == "random"
    assert made_of._prepared(noisy, X) != "random"


def test_the_loss_may_be_rounded_otherwise():
    old = {"x_train": "a", "loss before training": "0.83071"}
    assert not made_of.differences(old, old | {"loss before training": "0.83072"})
    assert made_of.differences(old, old | {"loss before training": "0.84"})
    assert made_of.differences(old, old | {"prepare_train": "b"}) == [
        "prepare_train: (absent) -> b"
    ]


@pytest.fixture
def compare_of(make_config, monkeypatch, tmp_path):
    """`compare_of(...)`: compares two optimizers on such a problem."""

    def compared(load=GOOD, build=dense, folder="c", **arguments):
        monkeypatch.setitem(PROBLEMS, "own", Problem(lambda _: load, build))
        config = make_config(problem="own", epochs=1)
        arguments = {"seeds": [0], **arguments}
        return compare(config, ["msgd", "ssd"], tmp_path / folder, **arguments)

    return compared


OTHER = GOOD._replace(y_train=1 - Y[:40], y_test=1 - Y[40:])


@pytest.mark.exhaustive
def test_a_study_of_something_else_is_refused(compare_of, tmp_path):
    (first, _) = compare_of()
    assert compare_of()[0] == first
    results = (tmp_path / "c" / "results.csv").read_bytes()
    for change in ({"load": OTHER}, {"build": lambda: dense(4)}):
        message = "holds a comparison of other data or another model"
        with pytest.raises(ExperimentError, match=message):
            compare_of(**change)
    assert (tmp_path / "c" / "results.csv").read_bytes() == results
    fresh = compare_of(load=OTHER, fresh=True)
    assert compare_of(load=OTHER) == fresh  # And it resumes with that.
    assert fresh[0]["test_loss"] != first["test_loss"]
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path / 'c' / 'study.db'}")
    assert len(names) == 2


@pytest.mark.exhaustive
def test_a_shared_study_of_something_else_is_refused(compare_of, tmp_path):
    """Another workdir, as on another machine with other data."""
    storage = str(tmp_path / "shared.db")
    compare_of(storage=storage)
    with pytest.raises(ExperimentError, match=r"shared.db holds a study of other data"):
        compare_of(load=OTHER, folder="d", storage=storage)


@pytest.mark.exhaustive
def test_an_earlier_study_that_does_not_say(compare_of, tmp_path):
    compare_of()
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("made_of")["y_test"].startswith("int32 [20] ")
    path.write_text(json.dumps(config))
    with pytest.raises(ExperimentError, match="holds a comparison that does not say"):
        compare_of()
    compare_of(fresh=True)


def test_a_comparison_is_checked_before_anything_runs(compare_of, tmp_path):
    with pytest.raises(ExperimentError, match="must have the same length"):
        compare_of(load=GOOD._replace(y_test=Y))
    with pytest.raises(ExperimentError, match=r"must return a keras\.Model"):
        compare_of(build=lambda: 3)
    assert not (tmp_path / "c").exists()


# The commands.


def documented(folder, **changes):
    """The file of docs/compare.md in a folder outside of the clone."""
    text = (ROOT / "docs" / "compare.md").read_text()
    text = text.partition("```python\n")[2].partition("```")[0]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "my_problem.py"
    path.write_text(text)
    return f"--config={path.name}"


def errors_of(*flags, cwd, script="compare.py"):
    more = ("--notune", "--seeds=0", "--optimizers=msgd", "--workdir=w")
    if script == "train.py":
        more = ("--workdir=w",)
    code, _, errors = run(*flags, *more, cwd=cwd, script=script)
    assert code == 1
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("Error: ")
    return last


@pytest.mark.exhaustive
@pytest.mark.parametrize("script", sampled(["train.py"], ["train.py", "compare.py"]))
def test_one_line_of_error(tmp_path, script):
    flag = documented(tmp_path, **{"y[1000:]": "y"})
    found = errors_of(flag, cwd=tmp_path, script=script)
    assert "x_test and y_test of the problem 'mine' must have the same length" in found
    flag = documented(tmp_path, **{"x[:, :5]": "x[:, 50]"})
    found = errors_of(flag, cwd=tmp_path, script=script)
    assert re.search(r"load\(\) of the problem 'mine' failed at \S*:13: Index", found)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "changes, message",
    sampled(lambda case: "kers" in str(case), [
        ({"import keras": "import kers"}, r"failed at \S*problem.py:2: ModuleNot"),
        ({"def get_config():": "def get_config(:"}, "SyntaxError: invalid syntax"),
        ({"    return config\n": ""}, "must have a function get_config"),
        ({'config.problem = "mine"': "config.problem = int('a')"},
         r"failed at \S*my_problem.py:\d+: ValueError: invalid literal"),
    ]),
)  # fmt: skip
def test_one_line_of_error_of_a_config_file(tmp_path, changes, message):
    flag = documented(tmp_path, **changes)
    flags = tuple(flag.split("=")) if "kers" in str(changes) else (flag,)
    found = errors_of(*flags, "--config.epochs=1", cwd=tmp_path, script="train.py")
    assert re.search(rf"^Error: the config file my_problem.py .*{message}", found)


@pytest.mark.exhaustive
def test_an_edit_and_the_same_command(tmp_path):
    flag = documented(tmp_path)
    flags = (flag, "--config.epochs=1", "--workdir=w")
    code, _, errors = run(*flags, cwd=tmp_path)
    assert code == 0, errors
    documented(tmp_path, **{"Dense(32,": "Dense(33,"})
    code, _, errors = run(*flags, cwd=tmp_path)
    assert code == 1 and "Traceback" not in errors
    assert "The workdir w holds a run of other data or another model" in errors
    assert "model, layer 1: Dense" in errors and "x_train" not in errors
    code, output, errors = run(*flags, "--fresh", cwd=tmp_path)
    assert code == 0, errors
    assert "epoch 1/1" in output
