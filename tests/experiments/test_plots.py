"""The curves are drawn, whatever the numbers."""

import matplotlib.figure
import matplotlib.image
import pytest

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.figures import (
    line_styles,
    save_comparison,
    save_sensitivity,
)
from svag_tf.experiments.optimizers import DIRECTIONS, OPTIMIZERS, TITLES
from svag_tf.experiments.plots import (
    new_figure,
    save,
    save_curves,
    spread_near_one,
)

PUBLISHED = published("fmnist_2c2d")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, instead of their files."""
    figures = []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, path: figures.append(figure) or path.touch(),
    )
    return figures


def rows(losses):
    return [
        {"epoch": i, "train_loss": loss, "test_loss": loss, "train_accuracy": 0.5,
         "test_accuracy": 0.6}
        for i, loss in enumerate(losses)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "losses",
    [
        [2.3],
        [2.3, 0.5, 0.1],
        [2.3, float("nan")],
        [2.0, float("inf")],
        [float("inf")],
        [1, 0],
    ],
)
def test_curves(tmp_path, losses):
    save_curves(rows(losses), "a title", tmp_path / "curves.png")
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.01  # something is drawn


@pytest.mark.filterwarnings("error")
def test_curves_without_accuracy_show_the_loss_alone(tmp_path):
    none = {"train_accuracy": float("nan"), "test_accuracy": float("nan")}
    made = rows([2.3, 0.5])
    save_curves(made, "a title", tmp_path / "both.png")
    save_curves([row | none for row in made], "a title", tmp_path / "loss.png")
    both, loss = (
        matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("both", "loss")
    )
    assert loss.shape[0] == both.shape[0]
    assert loss.shape[1] < 0.7 * both.shape[1]
    assert loss[..., :3].std() > 0.01


def test_every_optimizer_has_a_title_and_a_colour_of_its_own():
    assert TITLES.keys() == OPTIMIZERS.keys()
    assert sorted(n for names in DIRECTIONS.values() for n in names) == sorted(TITLES)
    for colours in DIRECTIONS.values():
        assert len(set(colours.values())) == len(colours)


@pytest.mark.parametrize(
    "runs",
    [
        {"ssd": [rows([2.3, 0.1])]},
        {"msvag": [rows([2.3, 0.5]), rows([2.3, 0.2])], "adam": [rows([2.0, 1.0])]},
        {"sgd": [rows([2.3, float("nan")]), rows([2.3])], "lion": [rows([2, 0])]},
        {"sgd": [rows([float("inf")])]},
    ],
)
@pytest.mark.filterwarnings("error")
def test_comparison(tmp_path, runs):
    save_comparison(runs, "a title", tmp_path / "curves.png")
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape[1] > 300 < image.shape[0]
    assert image[..., :3].std() > 0.01


@pytest.mark.filterwarnings("error")
def test_published_curves_are_drawn_too(tmp_path, drawn):
    runs = {"msvag": [rows([2.3, 0.5, 0.4])], "msvag:beta=0.5": [rows([2.3, 0.9])]}
    save_comparison(runs, "a title", tmp_path / "curves.png", None, PUBLISHED)
    (legend,) = (a.get_legend() for a in drawn[0].axes if a.get_legend())
    told = [text.get_text() for text in legend.get_texts()]
    assert told.count("M-SVAG") == 2
    assert sum("published (DeepOBS)" in text for text in told) == len(PUBLISHED) == 3


@pytest.mark.parametrize("number, panels, keys", [(6, 3, 1), (7, 6, 2)])
def test_up_to_six_optimizers_share_a_panel(tmp_path, drawn, number, panels, keys):
    """Every line is in the legend, and every axis says what it is and its scale."""
    names = ("msvag", "svag", "msgd", "mssd", "ssd", "msvas", "adam")[:number]
    runs = {name: [rows([2.3, 0.5])] for name in names}
    save_comparison(runs, "a title", tmp_path / "curves.png")
    axes = drawn[0].axes
    legends = [a.get_legend() for a in axes if a.get_legend()]
    assert len(axes) == panels and len(legends) == keys
    told = {text.get_text() for legend in legends for text in legend.get_texts()}
    assert {TITLES[name] for name in names} <= told
    assert ("the other methods" in told) == (number == 7)
    for one in axes:
        colours = [x.get_color() for x in one.lines if x.get_label() in TITLES.values()]
        assert len(set(colours)) == len(colours)
    assert {a.get_ylabel() for a in axes} == {
        "test accuracy",
        "training loss (log scale)",
        "test loss minus training loss",
    }
    assert all(a.get_xlabel() == "epoch" for a in axes[-3:])


def test_variants_of_an_optimizer_differ_in_style():
    styles = line_styles(["adam", "ssd", "adam:epsilon=1", "adam:epsilon=2"])
    assert len(set(map(str, styles.values()))) == 4
    assert len({colour for colour, _ in styles.values()}) == 2


@pytest.mark.parametrize("highest, ticks", [(0.4, 4), (0.93, 3)])
def test_an_axis_of_accuracies_has_marks_where_they_are(highest, ticks):
    axes = matplotlib.figure.Figure().subplots()
    axes.plot([0.1, highest])
    spread_near_one([axes])
    low, high = axes.get_ylim()
    assert low == 0 and high > highest
    assert sum(low < tick < high for tick in axes.get_yticks()) >= ticks


@pytest.mark.parametrize("accurate", [True, False])
@pytest.mark.parametrize("ended", ["completed", "stopped", "diverged"])
@pytest.mark.filterwarnings("error")
def test_sensitivity(tmp_path, monkeypatch, accurate, ended):
    nan = float("nan")
    tried = [
        {
            "optimizer": label,
            "learning_rate": rate,
            "ended": ended if rate < 1 else "failed",
            "test_accuracy": 0.5 + rate if accurate else nan,
            "test_loss": 1 - rate if rate < 1 else nan,
        }
        for label in ("msvag", "adam", "adam:epsilon=1")
        for rate in (0.01, 0.1, 1.0)
    ]
    results = [row | {"seed": seed} for row in tried[:2] for seed in (0, 1)]
    titles = {row["optimizer"]: row["optimizer"] for row in tried}
    path, drawn = tmp_path / "sensitivity.png", []
    write = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, path: drawn.append(figure) or write(figure, path),
    )
    save_sensitivity(tried, results, "a title", accurate, titles, path)
    image = matplotlib.image.imread(path)
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.01
    assert {a.get_xlabel() for a in drawn[0].axes} == {"learning rate (log scale)"}


def test_labels_name_a_logarithmic_scale(tmp_path):
    figure = new_figure("a title", 4, 3)
    axes = figure.subplots()
    axes.set(xlabel="steps", ylabel="loss", yscale="log")
    save(figure, tmp_path / "figure.png")
    assert axes.get_xlabel() == "steps" and axes.get_ylabel() == "loss (log scale)"


def test_sensitivity_names_its_scale_once(tmp_path, drawn):
    run = {"optimizer": "msvag", "learning_rate": 0.1, "ended": "completed"}
    tried = [run | {"test_accuracy": 0.5, "test_loss": 1.0}]
    path = tmp_path / "sensitivity.png"
    save_sensitivity(tried, tried, "a title", True, {"msvag": "M-SVAG"}, path)
    assert drawn[0].axes[0].get_xlabel() == "learning rate (log scale)"
