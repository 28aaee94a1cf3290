"""The page and the picture of several replicas."""

import json
from pathlib import Path

from matplotlib.image import imread

import svag_tf
from svag_tf.experiments.benchmark import replicas
from svag_tf.experiments.benchmark.plots import save_replicas


def test_bytes_that_a_replica_sends_in_a_ring():
    assert replicas.wire_bytes(4000, 4) == 6000
    assert replicas.wire_bytes(4000, 1) == 0


def test_report_and_picture_of_the_results_in_the_docs(tmp_path):
    docs = Path(svag_tf.__file__).parents[1] / "docs" / "benchmark"
    results = json.loads((docs / "replicas.json").read_text())
    assert replicas.report_of(results) == (docs / "replicas.md").read_text()
    save_replicas(results, tmp_path / "replicas.png")
    height, width, _ = imread(tmp_path / "replicas.png").shape
    assert (width, height) == (1430, 494)
