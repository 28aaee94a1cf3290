"""`python -m svag_tf.report`: the content of the page, and that a browser shows it."""

import json
import math
import re
import shutil
import subprocess
import types

import keras
import numpy as np
import pytest
from test_import import block, python

from svag_tf import MSVAG
from svag_tf.callbacks import GradientNoise
from svag_tf.noise import figures, report
from svag_tf.noise.files import BINS, COLUMNS, HISTOGRAM_COLUMNS, OVERALL

pytest.importorskip("plotly")

METRICS = """epoch,step,learning_rate,train_loss,train_accuracy,test_loss,test_accuracy
0,0,0.1,2.0,0.1,2.1,0.1
1,4,0.1,1.0,0.6,1.2,0.5
2,8,0.01,0.5,0.9,0.9,0.7
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: one with all files, one with noise.csv alone."""
    folder = tmp_path_factory.mktemp("runs")
    for name, preset in (("full", "full"), ("<plain> & $little", "economy")):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(4, name="first"),
                keras.layers.Dense(1, name="second"),
            ]
        )
        model.compile(MSVAG(0.01), "mse")
        x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
        noise = GradientNoise(2, preset, folder / name)
        model.fit(x, x[:, :1] + 1, 4, 2, verbose=0, callbacks=[noise])
    (folder / "full" / "metrics.csv").write_text(METRICS)
    (folder / "full" / "config.json").write_text(json.dumps({"epochs": 2}))
    return [folder / "full", folder / "<plain> & $little"]


def write_noise(folder, rows):
    folder.mkdir()
    lines = [",".join(str(row.get(name, "")) for name in COLUMNS) for row in rows]
    (folder / "noise.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def figures_of(page):
    text = re.search(r"^const figures = (.*);$", page, re.M).group(1)
    return json.loads(text)


def test_what_is_read(runs):
    full = report.read_run(runs[0], "a run")
    assert list(full.noise) == ["first", "second", OVERALL]
    assert full.noise["first"]["step"].tolist() == [2, 4, 6, 8]
    assert full.complete and full.metrics["test_loss"].tolist() == [2.1, 1.2, 0.9]
    assert full.histograms["first"].shape == (BINS,)
    assert full.histograms["first"].sum() == 16  # 12 weights and 4 biases
    assert full.gamma_over_time[1].shape == (BINS, 4)
    np.testing.assert_allclose(full.gamma_over_time[1].sum(0), 1)
    plain = report.read_run(runs[1], "another")
    assert plain.complete is None and not plain.metrics and not plain.histograms
    assert np.isnan(plain.noise["first"]["update_to_weight"]).all()


def test_every_part_is_on_the_page(runs, tmp_path):
    output = tmp_path / "page.html"
    report.write_report(runs, output)
    page = output.read_text()
    for part in (
        "Curves", "Noise", "Layers over time", "γ of the layers", "Histograms of γ",  # noqa: RUF001
        "Learning rate and time", "Noisiest layers",
    ):  # fmt: skip
        assert f"<h2>{part}</h2>" in page
    assert "&lt;plain&gt; &amp; $little" in page and "<plain>" not in page
    figures = figures_of(page)
    assert len(figures) == page.count('<div class="figure" id=') == 1 + 1 + 4 + 2 + 1
    first, second = report.read_run(runs[0], ""), report.read_run(runs[1], "")
    lines = {t["name"]: t for t in figures[0]["data"] if t["yaxis"] == "y"}
    assert set(lines) == {"full, test", "full, train"}
    eta2 = [t for t in figures[1]["data"] if t["yaxis"] == "y"]
    for trace, run in zip(eta2, (first, second)):
        shown = [math.inf if y is None else y for y in trace["y"]]
        np.testing.assert_allclose(shown, run.noise[OVERALL]["eta2"])
    heat = figures[4]["data"][0]
    assert heat["y"] == ["first", "second"] and heat["x"] == ["2", "4", "6", "8"]
    np.testing.assert_allclose(
        heat["z"], [first.noise[layer]["gamma"] for layer in ("first", "second")]
    )


def test_noisiest_layers_come_first(tmp_path):
    rows = [
        {"step": 5, "layer": layer, "eta2": eta2, "gamma": 0.5, "seconds": 1}
        for layer, eta2 in (
            ("quiet", 0.5), ("loud", 80.0), ("nothing", "nan"), ("lost", "inf"),
            (OVERALL, 2.0),
        )
    ]  # fmt: skip
    write_noise(tmp_path / "a", rows)
    output = tmp_path / "page.html"
    report.write_report([tmp_path / "a"], output)
    layers = re.findall(r"<tr><td>(\w+)</td><td>([\w.]+)</td>", output.read_text())
    assert layers == [
        ("lost", "inf"), ("loud", "80"), ("quiet", "0.5"), ("nothing", "nan"),
    ]  # fmt: skip


def test_gaps_are_gaps(tmp_path):
    """Nothing is drawn across them, and a point between two of them is seen."""
    rows = [
        {"step": step, "layer": layer, "gamma": 0.5, "seconds": 1, "eta2": scale,
         "noise_scale": scale, "noise_scale_error": "nan" if scale == "inf" else 1}
        for step, scale in enumerate([3, 4, "inf", 5, *["inf"] * 40])
        for layer in ("first", OVERALL)
    ]  # fmt: skip
    write_noise(tmp_path / "a", rows)
    traces = figures.noise([report.read_run(tmp_path / "a", "a")]).data
    assert traces[0].marker.size[:5] == (0, 0, 0, 5, 0)
    (band,) = [trace for trace in traces if trace.fill == "toself"]
    assert band.x == (0, 1, 1, 0, None, 3, 3, None)
    assert band.y == (4, 5, 3, 2, None, 6, 4, None)


def test_noise_alone(tmp_path):
    """Without any signal the panels and the heat map say so."""
    rows = [
        {"step": step, "layer": layer, "gamma": 0.5, "seconds": 1, "eta2": "inf",
         "noise_scale": "inf", "noise_scale_error": "nan", "update_to_weight": step}
        for step in (12, 19)
        for layer in ("first", OVERALL)
    ]  # fmt: skip
    write_noise(tmp_path / "a", rows)
    run = report.read_run(tmp_path / "a", "a")
    panels = figures.noise([run])
    texts = [annotation.text for annotation in panels.layout.annotations]
    assert texts.count("no signal can be told from the noise") == 2
    # It has no power of ten, so "2" and "5" would be ambiguous.
    assert panels.layout.yaxis4.dtick is None
    (heat_map,) = figures.heat_maps([run], "eta2")
    scale, no_signal = heat_map.data
    assert list(scale.z[0]) == [None, None] and not scale.showscale
    assert list(no_signal.z[0]) == [1.0, 1.0]


def test_heat_maps_side_by_side_have_one_scale(tmp_path):
    """And "no signal" is no colour of the scale: it has an entry of its own."""
    for name, eta2 in (("a", (0.1, 10.0)), ("b", (1.0, 1000.0)), ("c", (5.0, "inf"))):
        rows = [
            {"step": step, "layer": layer, "gamma": 0.5, "eta2": value}
            for step, value in enumerate(eta2)
            for layer in ("first", OVERALL)
        ]
        write_noise(tmp_path / name, rows)
    runs = [report.read_run(tmp_path / name, name) for name in "abc"]
    drawn = figures.heat_maps(runs, "eta2")
    for heat_map in drawn:
        np.testing.assert_allclose(
            [heat_map.data[0].zmin, heat_map.data[0].zmax], (-1, 3)
        )
    assert [len(heat_map.data) for heat_map in drawn] == [1, 1, 2]
    no_signal = drawn[2].data[1]
    assert list(no_signal.z[0]) == [None, 1.0] and drawn[2].data[0].z[0][1] is None
    assert (no_signal.name, no_signal.showlegend) == ("no signal", True)
    for heat_map in figures.heat_maps(runs, "gamma"):
        assert (heat_map.data[0].zmin, heat_map.data[0].zmax) == (0, 1)


@pytest.mark.parametrize(
    "name, caption, axis",
    [
        ("full", "Loss and accuracy over the epochs.", "epoch"),
        (
            "<plain> & $little",
            "The training loss as fit shows it: the mean since the start of the epoch.",
            "updates",
        ),
    ],
)
def test_a_caption_names_what_is_on_the_axis(runs, name, caption, axis, tmp_path):
    folder = next(run for run in runs if run.name == name)
    report.write_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<p>{caption}</p>" in page
    assert figures_of(page)[0]["layout"]["xaxis"]["title"]["text"] == axis


def test_names_tell_folders_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    assert report._names(folders[:2]) == ["a/run", "b/run"]
    assert report._names([folders[0], folders[2]]) == ["run", "other"]


def test_a_line_that_is_being_written_is_left_out(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "a")
    for name in ("noise.csv", "noise_histograms.csv"):
        with (tmp_path / "a" / name).open("a") as file:
            file.write("10,3,0.")
    run = report.read_run(tmp_path / "a", "a")
    assert run.noise[OVERALL]["step"].tolist() == [2, 4, 6, 8]


def test_a_measurement_that_is_not_whole_is_left_out(tmp_path):
    """And a layer that was not measured has a gap."""
    rows = [
        {"step": step, "layer": layer, "gamma": 0.5}
        for step, layers in ((1, "ab"), (2, "b"), (3, "abc"))
        for layer in [*layers, OVERALL]
    ]
    write_noise(tmp_path / "a", rows[:-1])
    (tmp_path / "a" / "config.json").write_text('{"epochs": "many"}')
    run = report.read_run(tmp_path / "a", "a")
    assert list(run.noise) == ["a", "b", OVERALL] and run.complete is None
    assert run.noise[OVERALL]["step"].tolist() == [1, 2]
    np.testing.assert_array_equal(run.noise["a"]["gamma"], [0.5, np.nan])
    report.write_report([tmp_path / "a"], tmp_path / "page.html")
    write_noise(tmp_path / "b", rows[:2])
    with pytest.raises(report.ReportError, match="holds no measurements"):
        report.read_run(tmp_path / "b", "b")


def test_command(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report.main([str(runs[0])])
    assert (runs[0] / "report.html").exists()
    report.main([str(folder) for folder in runs])
    assert (tmp_path / "report.html").exists()
    report.main([str(runs[0]), "--output=other.html"])
    assert capsys.readouterr().out.splitlines()[-1] == "Wrote other.html"
    assert "http-equiv" not in (tmp_path / "other.html").read_text()


def test_watching_until_the_run_is_complete(runs, tmp_path, monkeypatch, capsys):
    folder, page = tmp_path / "a", tmp_path / "a" / "report.html"
    steps = []

    def sleep(seconds):
        """What happens while the watcher sleeps: the run begins, measures, and ends."""
        steps.append(page.read_text() if page.exists() else None)
        if len(steps) == 1:
            write_noise(folder, [])
        elif len(steps) == 2:
            shutil.rmtree(folder)
            shutil.copytree(runs[0], folder)
            (folder / "report.html").unlink(missing_ok=True)
            (folder / "metrics.csv").write_text(METRICS[: METRICS.index("2,8")])
        elif len(steps) == 3:
            (folder / "metrics.csv").write_text(METRICS)
        assert len(steps) < 5

    monkeypatch.setattr(report, "time", types.SimpleNamespace(sleep=sleep))
    report.main([str(folder), "--watch", "--interval=7"])
    assert steps[:2] == [None, None] and len(steps) == 3
    assert '<meta http-equiv="refresh" content="7">' in steps[2]
    assert "http-equiv" not in page.read_text()
    output = capsys.readouterr().out
    assert output.count("Waiting: ") == 1 and "complete" in output


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "holds no measurements.*noise.csv must have been written by"),
        (",".join(COLUMNS) + "\n", "holds no measurements"),
        ("a,b\n1,2\n", "must start with the columns step, epoch"),
        (
            f"{','.join(COLUMNS)}\n{','.join('x' * 5)},{OVERALL}{',x' * 8}\n",
            "cannot be read",
        ),
    ],
)
def test_folders_that_cannot_be_reported_on(tmp_path, content, message):
    if content is not None:
        (tmp_path / "noise.csv").write_text(content)
    with pytest.raises(SystemExit, match=message):
        report.main([str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_bad_files_beside_it(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "a")
    (tmp_path / "a" / "metrics.csv").write_text("epoch,test_loss\n1,much\n")
    with pytest.raises(SystemExit, match=r"metrics\.csv cannot be read"):
        report.main([str(tmp_path / "a")])
    (tmp_path / "a" / "metrics.csv").unlink()
    (tmp_path / "a" / "noise_histograms.csv").write_text(
        ",".join(HISTOGRAM_COLUMNS) + "\n" + ",".join("?" * (BINS + 3)) + "\n"
    )
    assert report.read_run(tmp_path / "a", "a").histograms == {}


def test_bad_flags(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main([str(runs[0]), "--interval=0"])
    assert "--interval must be at least 1. Received: 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"Cannot write \.: it is a folder"):
        report.main([str(runs[0]), "--output=."])
    with pytest.raises(SystemExit, match="Cannot write"):
        report.main([str(runs[0]), f"--output={tmp_path}/no/page.html"])


# First script of the page: records errors, what was loaded and what was drawn.
PROBE = """<script>
const wrong = [];
for (const name of ["error", "warn"]) {
  const say = console[name];
  console[name] = (...words) => { wrong.push(words.join(" ")); say(...words); };
}
addEventListener("error", (event) => wrong.push(event.message), true);
addEventListener("load", () => setTimeout(() => {
  const backgrounds = [];
  for (let i = 0; i < 2; i++) {
    backgrounds.push(getComputedStyle(document.body).backgroundColor);
    document.getElementById("mode").click();
  }
  const told = document.createElement("script");
  told.type = "application/json";
  told.id = "told";
  told.textContent = JSON.stringify({
    wrong, backgrounds,
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    drawn: [...document.querySelectorAll(".figure")].map(
      (f) => f.querySelectorAll(".trace, .heatmaplayer image").length),
  });
  document.body.append(told);
}, 500));
</script>"""


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    pytest.skip("no chromium: apt-get install chromium")


def test_in_a_browser(runs, tmp_path):
    """No error, no request, every plot drawn, in light and dark."""
    chromium = browser()
    report.write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("<head>", f"<head>{PROBE}", 1))
    process = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = re.search(r'id="told">(.*?)</script>', process.stdout, re.S)
    assert told, process.stderr[-2000:]
    told = json.loads(told.group(1))
    assert told["wrong"] == [] and told["loaded"] == []
    assert len(told["drawn"]) == len(figures_of(page)) and min(told["drawn"]) > 0
    assert sorted(told["backgrounds"]) == ["rgb(22, 24, 28)", "rgb(255, 255, 255)"]


def test_needs_no_keras(runs, tmp_path):
    """Neither Keras nor a backend; and what KERAS_BACKEND says does not matter."""
    block(tmp_path)
    order = [str(runs[0]), f"--output={tmp_path / 'page.html'}"]
    call = ["-c", f"from svag_tf import report; report.main({order!r})"]
    command = ["-m", "svag_tf.report", *order]
    script = ["-c", "import svag_command as c; c.main()", "report", *order]
    for arguments, variables in (
        (command, {"stubs": tmp_path}),
        (command, {"KERAS_BACKEND": "pytorch"}),
        (script, {"stubs": tmp_path}),
        (script, {"KERAS_BACKEND": "pytorch"}),
        (call, {"stubs": tmp_path}),
    ):
        ran = python(*arguments, **variables)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == f"Wrote {tmp_path / 'page.html'}\n"
        assert figures_of((tmp_path / "page.html").read_text())
        (tmp_path / "page.html").unlink()
        if arguments is not call:
            assert ran.stderr == ""
