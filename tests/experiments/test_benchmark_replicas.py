"""The model of a cluster, against the same worked out by hand."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

import svag_tf
from svag_tf.experiments.benchmark import replicas
from svag_tf.experiments.benchmark.plots import save_replicas


def test_bytes_of_a_gradient_and_of_votes():
    assert replicas.exchanged_bytes(1000, 8, "mean") == 4000
    # 8 replicas: digits in base 17, 7 of them an int32 (17^7 < 2^31 < 17^8).
    assert replicas.exchanged_bytes(1000, 8, "majority_vote") == 4 * 143
    assert replicas.wire_bytes(4000, 4) == 6000


def test_time_of_a_ring():
    # 6 messages of 10 us each, and 6000 bytes at 1 MB/s.
    seconds = replicas.exchange_seconds(4000, 4, bandwidth=1e6, latency=10e-6)
    assert seconds == pytest.approx(6 * 10e-6 + 6e-3)
    assert replicas.exchange_seconds(4000, 1, 1e6) == 0


def test_votes_are_cheaper_than_gradients_on_every_network():
    rows = replicas.extrapolated()
    assert {row["gpus"] for row in rows} == {8, 64, 512}
    for mean, vote in zip(rows[::2], rows[1::2]):
        assert (mean["aggregation"], vote["aggregation"]) == replicas.AGGREGATIONS
        assert vote["sent_bytes"] < mean["sent_bytes"]
        assert mean["efficiency"] < vote["efficiency"] < 1


def test_report_and_picture_of_the_results_in_the_docs(tmp_path):
    docs = Path(svag_tf.__file__).parents[1] / "docs" / "benchmark"
    results = json.loads((docs / "replicas.json").read_text())
    assert replicas.report_of(results) == (docs / "replicas.md").read_text()
    assert results["model"]["rows"] == replicas.extrapolated()
    save_replicas(results, tmp_path / "replicas.png")
    height, width, _ = imread(tmp_path / "replicas.png").shape
    assert (width, height) == (1430, 910)
