"""The curves are drawn, whatever the numbers."""

import matplotlib.image
import pytest

from svag_tf.experiments.plots import save_curves


def rows(losses):
    return [
        {"epoch": i, "train_loss": loss, "test_loss": loss, "train_accuracy": 0.5,
         "test_accuracy": 0.6}
        for i, loss in enumerate(losses)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "losses", [[2.3], [2.3, 0.5, 0.1], [2.3, float("nan")], [2.0, float("inf")], [1, 0]]
)
def test_curves(tmp_path, losses):
    save_curves(rows(losses), "a title", tmp_path / "curves.png")
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.01  # something is drawn
