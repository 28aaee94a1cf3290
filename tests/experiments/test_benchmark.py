"""The benchmark on small sizes: it measures what it claims to measure."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import table
from matplotlib.image import imread
from tiers import sampled

from svag_tf.experiments.benchmark import measure, plots, replicas, targets, texts
from svag_tf.experiments.benchmark.cases import (
    TINY_SHAPES,
    all_cases,
    bert_base_shapes,
    case_named,
    efficientnet_b0_shapes,
    resnet50_shapes,
    scaling_case,
    scaling_sizes,
)
from svag_tf.experiments.benchmark.console import benchmark_with_progress
from svag_tf.experiments.benchmark.documents import fill
from svag_tf.experiments.benchmark.limit import build_limit
from svag_tf.experiments.benchmark.measure import Options, benchmark
from svag_tf.experiments.benchmark.memory import batches, footprint
from svag_tf.experiments.benchmark.report import page
from svag_tf.experiments.benchmark.rows import Row, all_rows
from svag_tf.experiments.benchmark.serving import RowError, Server
from svag_tf.experiments.errors import ExperimentError

ROOT = Path(__file__).resolve().parents[2]
needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="needs the TensorFlow backend"
)
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="needs a C compiler"
)


def command(*flags, cwd, **environment):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


# Cases and rows.


@needs_tensorflow
@pytest.mark.parametrize(
    "name, shapes",
    [("ResNet50", resnet50_shapes()), ("EfficientNetB0", efficientnet_b0_shapes())],
)
def test_the_shapes_are_those_of_keras(name, shapes):
    model = getattr(keras.applications, name)(weights=None)
    variables = model.trainable_variables
    assert [tuple(variable.shape) for variable in variables] == list(shapes)


def test_the_shapes_of_bert_base():
    assert sum(map(math.prod, bert_base_shapes())) == 109_482_240  # as published
    assert bert_base_shapes()[0] == (30522, 768)
    assert len(bert_base_shapes()) == 5 + 12 * 16 + 2


def test_the_other_cases():
    cases = all_cases()
    assert cases["matrices"].shapes == ((4096, 4096),) * 2
    assert len(TINY_SHAPES) == 60 and cases["tiny"].parameters < 10_000
    assert cases["embedding"].shapes == ((1_000_000, 64),)
    assert cases["embedding"].indices == 1024
    assert scaling_sizes()[0] == 1e4 and scaling_sizes()[-1] == 3e8
    assert case_named(scaling_case(30_000).name, False).shapes == ((30_000,),)
    assert case_named("bert", True).parameters < cases["bert"].parameters / 100


def test_the_bytes_that_a_method_must_move():
    rows, cases = all_rows("tensorflow"), all_cases()
    matrices, embedding = cases["matrices"], cases["embedding"]
    each = {
        name: rows[name].moved_bytes(matrices) / matrices.parameters
        for name in rows
        if rows[name].serves(matrices)
    }
    assert each["msvag"] == each["keras-adam"] == each["limit"] == 28
    assert each["msvag-bfloat16"] == each["msgd"] == each["keras-lion"] == 20
    assert each["ssd"] == 12 and each["copy"] == 8
    touched, all_rows_of_it = 1024 * 64, 64_000_000
    assert rows["msvag"].moved_bytes(embedding) == 24 * all_rows_of_it + 4 * touched
    assert rows["msvag-dense"].moved_bytes(embedding) == 28 * all_rows_of_it
    assert rows["ssd"].moved_bytes(embedding) == 12 * touched
    assert rows["msvag-lazy"].moved_bytes(embedding) == 28 * touched
    assert rows["msvag"].moved_bytes(cases["cnn"]) is None


def test_the_bytes_of_the_state_are_those_of_the_slots():
    from svag_tf.experiments.benchmark.keras_rows import optimizer_of

    variable = keras.Variable(np.zeros((8, 4), np.float32))
    for row in all_rows("tensorflow").values():
        if row.host != "tensorflow" or row.name == "msvag-lazy":
            continue
        optimizer = optimizer_of(row.name)
        optimizer.build([variable])
        state = sum(
            math.prod(slot.shape) * np.dtype(slot.numpy().dtype).itemsize
            for slot in optimizer.variables
            if tuple(slot.shape) == (8, 4)
        )
        assert state == row.state * 32, row.name


def test_every_class_is_a_row_on_both_backends():
    names = {cls.__name__.lower() for cls in table.classes()}
    for backend in measure.BACKENDS:
        assert names < set(all_rows(backend))


def test_a_missing_or_old_package_is_told():
    def row(*needs):
        return Row("x", "X", "peers", "torch", 8, needs=needs)

    assert row(("numpy", (1, 0))).missing() is None
    assert row(("no_such_package", ())).missing() == "no_such_package is not installed"
    assert "numpy 999.1 or later is not installed, but" in (
        row(("numpy", (999, 1))).missing()
    )


# Wrong requests are refused before anything is measured.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cases": ["tiny", "huge"]}, ["--cases", "matrices", "'huge'"]),
        ({"rows": ["adamw"]}, ["--rows", "msvag", "'adamw'"]),
        ({"backend": "mxnet"}, ["--backend", "tensorflow, jax", "'mxnet'"]),
        ({"rounds": 0}, ["--rounds", "at least 1", "0"]),
        ({"memory_limit": 0.0}, ["--memory_limit", "above 0", "0.0"]),
        ({"memory_limit": math.nan}, ["--memory_limit", "above 0", "nan"]),
        ({"cases": ["cnn"], "rows": ["limit"]}, ["Nothing to", "cases cnn", "limit"]),
    ],
)
def test_bad_options(tmp_path, fields, words, monkeypatch):
    monkeypatch.setattr(measure, "Server", None)  # nothing is started
    with pytest.raises(ExperimentError) as error:
        benchmark(Options(workdir=tmp_path / "new", **fields))
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_workdir_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "Server", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="a folder that can be written"):
        benchmark(Options(workdir=tmp_path / "file" / "below"))


def test_the_command_says_what_is_wrong_with_a_flag(tmp_path):
    result = command("--rows=msvag,nothing", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: --rows must name some of: msvag, ")
    assert "Traceback" not in result.stderr and not (tmp_path / "runs").exists()


# The C program.


@needs_compiler
def test_the_limit_program_serves(tmp_path):
    program, _, why = build_limit(tmp_path)
    assert program, why
    server = Server([str(program), "100000", "1"], dict(os.environ))
    try:
        assert server.first("limit") > 0
        assert len(server.turn("limit", 0)) == 1
        # Not in every turn: on a busy machine one step may take that long.
        assert any(len(server.turn("limit", 0.05)) > 1 for _ in range(100))
        assert all(seconds > 0 for seconds in server.turn("copy", 0.01))
    finally:
        server.close()


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert build_limit(tmp_path) == (
        None,
        None,
        "The C compiler 'no-such-compiler' cannot be run: No such file or directory",
    )


# Servers.

SERVER = """
import sys, time
sys.path.insert(0, {root!r})
from svag_tf.experiments.benchmark.serving import serve
def build(name):
    print("a library prints")
    if name == "refused":
        raise ValueError("in user code:\\n  File x\\n\\n    no such\\n    thing")
    if name == "dies":
        sys.exit("the last words")
    hold = 100 * 2**20 if name == "large" else 0
    def step():
        bytearray(b"x" * hold)
        return 0.25
    return step
serve(build)
"""


@pytest.fixture
def server():
    server = Server(
        [sys.executable, "-c", SERVER.format(root=str(ROOT))], {**os.environ}
    )
    yield server
    server.close()


@pytest.mark.exhaustive
def test_a_failing_row_leaves_the_others(server):
    assert server.first("good") == 0.25
    with pytest.raises(RowError, match=r"^ValueError: thing$"):
        server.first("refused")
    assert set(server.turn("good", 0.01)) == {0.25}


@pytest.mark.exhaustive
def test_a_dead_server_tells_why(server):
    with pytest.raises(RowError, match=r"exit code 1\. the last words"):
        server.first("dies")
    with pytest.raises(RowError, match="exit code 1"):
        server.first("good")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_extra_memory(server):
    server.first("small")
    server.first("large")
    assert server.extra_memory("small") < 5 * 2**20
    assert 100 * 2**20 <= server.extra_memory("large") < 250 * 2**20


# Rows that take turns.


class FakeServer:
    """Steps whose time grows by one second with every turn of any row."""

    def __init__(self, command, environment):
        self.closed = False
        started.append((self, command, environment))

    def first(self, row):
        if row == "ssd":
            raise RowError("cannot")
        return 9.0

    def turn(self, row, seconds):
        turns.append(row)
        return [float(len(turns)), float(len(turns))]

    def extra_memory(self, row):
        return 1024

    def close(self):
        self.closed = True


turns: list[str] = []
started: list = []


@pytest.fixture
def fake_servers(monkeypatch):
    turns.clear()
    started.clear()
    monkeypatch.setattr(measure, "Server", FakeServer)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "build_limit", lambda _: (None, None, "no compiler"))


@pytest.mark.usefixtures("fake_servers")
def test_all_rows_take_turns(tmp_path):
    names = ["msvag", "ssd", "keras-adam", "limit"]
    results = benchmark(
        Options(tmp_path, cases=["matrices"], rows=names, rounds=3, fresh=False)
    )
    assert [sorted(turns[i : i + 2]) for i in (0, 2, 4)] == [
        ["keras-adam", "msvag"]
    ] * 3
    rows = results["cases"]["matrices"]["rows"]
    times = [t for t, name in enumerate(turns, 1) if name == "msvag" for _ in "ab"]
    assert rows["msvag"]["median"] == np.median(times)
    assert rows["msvag"]["low"] == np.percentile(times, 25)
    assert rows["msvag"]["steps"] == 6
    assert rows["msvag"]["to_keras-adam"] == (
        rows["msvag"]["median"] / rows["keras-adam"]["median"]
    )
    assert rows["msvag"]["gb_per_second"] == pytest.approx(
        28 * 2 * 4096**2 / rows["msvag"]["median"] / 1e9
    )
    assert rows["ssd"] == {"title": "SSD", "group": "ours", "error": "cannot"}
    assert results["skipped"] == {"limit": "no compiler"}
    text = (tmp_path / "benchmark.md").read_text()
    assert "SSD fails. cannot" in text and "- No C loop: no compiler\n" in text
    assert re.search(r"- Load average: [\d.]+ at the start, [\d.]+ at the end", text)
    assert "; 3 rounds, in which" in text
    assert all(server.closed for server, _, _ in started)


@pytest.mark.usefixtures("fake_servers")
def test_a_row_that_fails_is_an_error_when_all_is_written(tmp_path):
    options = Options(tmp_path, cases=["tiny"], rows=["msvag", "ssd"], rounds=1)
    with pytest.raises(
        ExperimentError, match=r"Not measured \(see there\): SSD \(60 tiny variables\)$"
    ):
        benchmark_with_progress(options)
    assert "SSD fails. cannot" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.usefixtures("fake_servers")
def test_rows_that_do_not_fit_take_turns_in_batches(tmp_path):
    names = ["msvag", "svag", "msvas", "keras-adam"]
    # Two of the four fit: 12 bytes a parameter each, 4 for the gradients, 8 that Adam
    # needs temporarily, and the libraries.
    fits = 0.8 + (2 * 12 + 4 + 8) * 2 * 4096**2 / 2**30
    results = benchmark(
        Options(tmp_path, cases=["matrices"], rows=names, rounds=2, fresh=False,
                memory_limit=fits + 0.1)
    )  # fmt: skip
    assert results["cases"]["matrices"]["batches"] == 3
    assert [sorted(turns[i : i + 2]) for i in range(0, 12, 2)] == [
        sorted([name, "keras-adam"]) for name in names[:3] for _ in range(2)
    ]
    assert "in 3 batches" in (tmp_path / "benchmark.md").read_text()


def test_what_does_not_fit():
    case, rows = all_cases()["matrices"], all_rows("tensorflow")
    chosen = [rows[name] for name in ("msvag", "ssd", "keras-adam", "limit")]
    alone = {row.name: footprint(case, [row]) for row in chosen}
    assert alone["limit"] < alone["ssd"] < alone["msvag"] < alone["keras-adam"]

    def batched(limit):
        found, errors = batches(case, chosen, limit)
        return [[row.name for row in batch] for batch in found], list(errors)

    assert batched(math.inf) == ([["keras-adam", "limit", "msvag", "ssd"]], [])
    references = footprint(case, chosen[2:])
    assert batched(references) == ([["keras-adam", "limit"], ["msvag", "ssd"]], [])
    assert batched(alone["keras-adam"] - 1)[1] == ["keras-adam"]
    assert batched(alone["limit"] - 1) == ([], ["msvag", "ssd", "keras-adam", "limit"])
    for limit in np.linspace(0.3, 4.0, 38) * 2**30:
        found, errors = batches(case, chosen, limit)
        assert all(footprint(case, batch) <= limit for batch in found)
        measured = {row.name for batch in found for row in batch}
        assert measured | set(errors) == set(alone) and not measured & set(errors)


@pytest.mark.usefixtures("fake_servers")
def test_first_step_and_memory_come_from_new_processes(tmp_path):
    results = benchmark(
        Options(tmp_path, cases=["matrices", "tiny"], rows=["msvag"], rounds=1)
    )
    assert len(started) == 1 + 3 + 1  # in turns, three alone; the tiny case in turns
    row = results["cases"]["matrices"]["rows"]["msvag"]
    assert (row["first_step"], row["extra_memory"]) == (9.0, 1024)
    assert "first_step" not in results["cases"]["tiny"]["rows"]["msvag"]
    environment = started[0][2]
    assert environment["KERAS_BACKEND"] == "tensorflow"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.usefixtures("fake_servers")
def test_an_interruption_leaves_the_finished_cases(tmp_path, monkeypatch):
    def interrupted(self, row, seconds):
        turns.append(row)
        if len(turns) == 3:
            raise KeyboardInterrupt
        return [1.0]

    monkeypatch.setattr(FakeServer, "turn", interrupted)
    options = Options(
        tmp_path, cases=["matrices", "tiny"], rows=["msvag"], rounds=2, fresh=False
    )
    with pytest.raises(KeyboardInterrupt):
        benchmark(options)
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(results["cases"]) == ["matrices"]
    assert all(server.closed for server, _, _ in started)


@pytest.mark.usefixtures("fake_servers")
def test_the_progress_reaches_its_end(tmp_path, monkeypatch):
    def measured(kind, n, width, steps):
        seconds, size = {"mean": 2.0, "majority_vote": 1.0}, {"payload_bytes": 1}
        row = {"kind": kind, "replicas": n, "parameters": 8, "sent_bytes": 1, **size}
        row["loopback_bytes"] = None
        return [row | {"aggregation": a, "seconds": s} for a, s in seconds.items()]

    monkeypatch.setattr(replicas, "_measured", measured)
    seen = []
    benchmark(
        Options(tmp_path, cases=["matrices"], rows=["msvag"], rounds=2, scaling=True),
        lambda done, work, what: seen.append((done, work)),
    )
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(seen))
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    rows = json.loads((tmp_path / "replicas.json").read_text())["measured"]
    assert [row["seconds"] for row in rows] == [2.0] * 4 + [1.0] * 4
    assert [row["efficiency"] for row in rows] == [1, 0.5, 0.25, 0.5] * 2


# Reports.


def results_with(**ratios):
    """Results in which M-SVAG takes 2 s and the named rows a multiple of it."""
    rows = {"msvag": {"median": 2.0, "first_step": 3.0, "extra_memory": 2**20}}
    rows |= {name.replace("_", "-"): {"median": 2.0 * r} for name, r in ratios.items()}
    case = {"rows": rows, "largest_variable": 4 * 2**20}
    return {"cases": {"matrices": case}}


def test_targets():
    results = results_with(limit=1 / 1.4, keras_adam=7.0, torch_msvag=4.0)
    found = {row["text"]: row for row in targets.judged(results)}
    limit = found["M-SVAG / C loop, matrices"]
    assert limit["value"] == pytest.approx(1.4) and limit["met"] is False
    assert limit["target"] == "at most 1.25"
    adam = found["Keras Adam / M-SVAG, matrices"]
    assert (adam["value"], adam["met"], adam["target"]) == (7.0, True, "at least 7")
    memory = found["M-SVAG's extra memory / largest variable, matrices"]
    assert (memory["value"], memory["met"]) == (0.25, False)
    assert found["M-SVAG / torch AdamW fused, matrices"]["met"] is None
    assert found["Keras Adam / M-SVAG, ResNet-50"]["met"] is None


def test_all_targets_can_be_measured():
    rows, cases = all_rows("tensorflow"), all_cases()
    for target in targets.TARGETS:
        case = cases[target.case]
        for name in filter(None, (target.above, target.below)):
            assert rows[name].serves(case), target
            assert target.field == "median" or rows[name].processes(case), target
    assert targets.needed()[0] == sorted({t.case for t in targets.TARGETS})


def test_documents_are_filled(tmp_path):
    results = json.loads((ROOT / "docs/benchmark/benchmark.json").read_text())
    (tmp_path / "benchmark.json").write_text(json.dumps(results))
    document = tmp_path / "page.md"
    document.write_text("a\n<!-- benchmark: speed -->\nold\n<!-- end -->\nb\n")
    for _ in range(2):
        fill(tmp_path, [str(document)])
        text = document.read_text()
        assert text.startswith("a\n<!-- benchmark: speed -->\n\nMedian")
        assert text.endswith("|\n\n<!-- end -->\nb\n") and "old" not in text
    adam = results["cases"]["bert"]["rows"]["keras-adam"]["median"]
    (line,) = (x for x in text.splitlines() if x.startswith("| Keras Adam |"))
    assert f"| {texts.seconds(adam)} (" in line and line.count("|") == 6
    for wrong, words in (("no block", "has no block"), ("gone.md", "Cannot be read")):
        other = tmp_path / wrong
        if "block" in wrong:
            other.write_text("text")
        with pytest.raises(ExperimentError, match=words):
            fill(tmp_path, [str(other)])


def test_numbers_as_people_read_them():
    assert texts.number(1234.5) == "1,234"
    assert texts.number(19.0) == "19.0" and texts.number(0.7) == "0.70"
    assert texts.number(0.0) == "0" and texts.number(None) == "-"
    assert texts.seconds(0.0413) == "41.3 ms" and texts.seconds(2.5) == "2.50 s"
    assert texts.seconds(3.26e-6) == "3.26 µs"
    assert texts.spread(0.0009, 0.002) == "0.90 to 2.00 ms"
    assert texts.mebibytes(3 * 2**19) == "1.50"


def test_a_bar_is_as_long_as_the_table_says():
    """The ratio within a batch, for a row that did not fit with all others."""
    row = {"median": 6.0, "to_limit": 2.5}
    case = {"rows": {"limit": {"median": 2.0}, "msvag": row}}
    assert plots._bar(case, row, "limit") == 2.5
    assert plots._bar(case, {"median": 6.0}, "limit") == 3.0
    assert plots._bar(case, row, "") == 6.0


def test_bars_of_one_step_each(tmp_path):
    """No quartile is on the wrong side of the median, however the ratio rounds."""
    times = np.random.default_rng(0).uniform(1e-5, 1.0, 20).tolist()
    rows = {
        f"row{i}": {"title": str(i), "group": "ours", "to_limit": t / 0.7}
        | dict.fromkeys(("median", "low", "high"), t)
        for i, t in enumerate(times)
    }
    rows["limit"] = {"title": "limit", "group": "limit", "median": 0.7}
    plots.save_bars({"title": "case", "rows": rows}, tmp_path / "bars.png")
    assert imread(tmp_path / "bars.png").shape[0] > 300


def test_scaling_shows_the_measured_times_alone(tmp_path, monkeypatch):
    """What the legend says is a measured point's, not that of a fit beside them."""
    drawn = []
    monkeypatch.setattr(
        plots.matplotlib.figure.Figure,
        "savefig",
        lambda figure, path: drawn.extend(figure.axes[0].lines) or path.touch(),
    )
    sizes, times = [10_000, 300_000_000], [3.27e-6, 0.187]
    curve = {"title": "C loop", "parameters": sizes, "median": times}
    plots.save_scaling({"limit": curve}, tmp_path / "scaling.png")
    assert drawn[0].get_xdata().tolist() == sizes
    assert drawn[0].get_ydata().tolist() == times
    assert drawn[0].get_label() == (
        "C loop: 3.27 µs for 10,000 parameters;\n0.62 ns a parameter for 300,000,000"
    )


# The whole.


@needs_tensorflow
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "rows, scaling",
    sampled(
        [("msvag,keras-adam,limit", False)],
        [
            ("msvag,keras-adam,limit", False),
            ("msvag,msvag-bfloat16,keras-adam-compiled,plain,limit,copy", True),
        ],
    ),
)
def test_the_command(tmp_path, rows, scaling):
    result = command(
        "--quick", "--rounds=1", "--cases=matrices", f"--rows={rows}", "--nofresh",
        f"--scaling={scaling}", "--workdir=out", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    assert "out/benchmark.md" in result.stdout.replace("\n", "")
    results = json.loads((out / "benchmark.json").read_text())
    assert "--quick --rounds=1" in results["command"]
    assert results["machine"]["cores"] >= 1 and results["compiler"].startswith("cc")
    for case in results["cases"].values():
        assert list(case["rows"]) == rows.split(",")
        for row in case["rows"].values():
            assert row["median"] > 0 and row["to_limit"] > 0, row
    text = (out / "benchmark.md").read_text()
    assert text == page(results) and "; 1 round, in which" in text
    for name in re.findall(r"\]\(([^)]+png)\)", text):
        assert imread(out / name).shape[0] > 200
    if scaling:
        assert results["scaling"]["msvag"]["parameters"] == scaling_sizes(quick=True)
        assert "](replicas.md)" in text and "](replicas.png)" in text
        check_replicas(json.loads((out / "replicas.json").read_text()))
        assert "| 1 device | mean gradient |" in (out / "replicas.md").read_text()


def check_replicas(results):
    """Two processes send as many bytes as computed."""
    rows = {(r["kind"], r["aggregation"]): r for r in results["measured"]}
    assert [(*k, r["replicas"]) for k, r in rows.items()] == [
        (kind, aggregation, n)
        for aggregation in replicas.AGGREGATIONS
        for kind, n in replicas.QUICK_SETUPS
    ]
    mean, votes = (rows["processes", name] for name in replicas.AGGREGATIONS)
    layers, width = replicas.LAYERS, replicas.QUICK["width"]
    assert mean["parameters"] == layers * (width**2 + width)
    assert mean["payload_bytes"] == mean["sent_bytes"] == 4 * mean["parameters"]
    digits = mean["parameters"] + 2 * layers  # And one for each variable.
    assert votes["payload_bytes"] == 4 * math.ceil(digits / 13)
    for row in (mean, votes):
        assert row["loopback_bytes"] > row["sent_bytes"]


@pytest.mark.exhaustive
@needs_tensorflow
def test_models_are_fitted(tmp_path):
    results = benchmark(
        Options(tmp_path, rounds=1, quick=True,
                cases=["cnn", "transformer", "table", "dense", "noise"],
                rows=["msvag", "msvag-lazy", "noise-fit", "noise-economy"])
    )  # fmt: skip
    expected = {"cnn": 1, "transformer": 2, "table": 2, "dense": 1, "noise": 2}
    for name, rows in expected.items():
        measured = results["cases"][name]["rows"]
        assert len(measured) == rows
        assert all(row["median"] > 0 for row in measured.values()), measured
    target = next(t for t in results["targets"] if "economy" in t["text"])
    noise = results["cases"]["noise"]["rows"]
    assert target["value"] == (  # in percent of 100 steps
        noise["noise-economy"]["median"] / noise["noise-fit"]["median"]
    )


@pytest.mark.needs("jax", "optax")
def test_the_jax_backend(tmp_path):
    names = ["msvag", "ssd", "keras-adam", "optax-adam", "optax-msvag", "limit"]
    results = benchmark(
        Options(tmp_path, "jax", ["matrices"], names, rounds=1, quick=True, fresh=False)
    )
    rows = results["cases"]["matrices"]["rows"]
    assert list(rows) == names
    assert all(row["to_limit"] > 0 for row in rows.values()), rows


@pytest.mark.needs("torch", "pytorch_optimizer")
def test_the_pytorch_rows(tmp_path):
    names = ["torch-adamw-fused", "torch-adamw-foreach", "torch-msvag"]
    results = benchmark(
        Options(tmp_path, cases=["tiny"], rows=names, rounds=1, quick=True)
    )
    for name, row in results["cases"]["tiny"]["rows"].items():
        assert row["median"] > 0, (name, row)


# The rows that are written here are M-SVAG.


def steps_of_msvag(gradients):
    """M-SVAG's steps from 0, in float64, with the equations of the paper."""
    theta = m = v = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
        p = 0.9**t
        mean, square, rho = m / (1 - p), v / (1 - p), 0.1 * (1 + p) / (1.9 * (1 - p))
        s = np.maximum(square - mean**2, 0) / (1 - rho) if t > 1 else 0.0
        theta = theta - 0.001 * mean**3 / (mean**2 + rho * s)
    return theta


GRADIENTS = list(np.random.default_rng(0).normal(1.0, 1.0, (6, 50)))


def test_the_plain_row_is_msvag():
    from svag_tf.experiments.benchmark.keras_rows import optimizer_of

    optimizer = optimizer_of("plain")
    theta = keras.Variable(np.zeros(50, np.float32))
    for gradient in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [theta])
    np.testing.assert_allclose(theta, steps_of_msvag(GRADIENTS), rtol=2e-3, atol=5e-6)


@pytest.mark.needs("jax", "optax")
def test_the_optax_row_is_msvag():
    import optax

    from svag_tf.experiments.benchmark.jax_rows import optax_msvag

    method = optax_msvag(0.001)
    theta = np.zeros(50, np.float32)
    state = method.init(theta)
    for gradient in GRADIENTS:
        updates, state = method.update(gradient.astype(np.float32), state)
        theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(theta, steps_of_msvag(GRADIENTS), rtol=2e-3, atol=5e-6)
