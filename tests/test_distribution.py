"""Several replicas in one process, in a script for TensorFlow's devices to be set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from filelock import FileLock
from tiers import sampled

import svag_tf
from svag_tf import distribution, replicas
from svag_tf.distribution.processes import LocalReplicas
from svag_tf.experiments.training.steps import Shards
from svag_tf.experiments.training.train import Batches

SCRIPT = Path(__file__).with_name("distribution_script.py")
ROOT = Path(svag_tf.__file__).parents[1]


CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text(), re.M)
SLOW = [
    "check_same_numbers_as_on_one_device",
    "check_sparse_gradients",
    "check_an_infinite_gradient_on_the_last_replica",
    "check_majority_vote",
    "check_variance_of_replicas",
    "check_fit_with_parts_that_are_uneven",
]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """What went wrong in each check on three replicas.

    One process runs all checks of a tier, whichever of pytest's processes asks first.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # That of all workers.

    def outcome(check):
        tier = "slow" if check in SLOW else "exhaustive"
        checks = [c for c in CHECKS if (c in SLOW) == (check in SLOW)]
        folder_of_tier = folder / f"replicas-{tier}"
        file = folder_of_tier / "outcomes.json"
        with FileLock(folder / f"replicas-{tier}.lock"):
            if not file.exists():
                folder_of_tier.mkdir()
                path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
                process = subprocess.run(
                    [sys.executable, str(SCRIPT), str(folder_of_tier), *checks],
                    env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
                    capture_output=True,
                    text=True,
                    timeout=900,
                    check=False,
                )
                assert process.returncode == 0, process.stderr[-8000:]
        return json.loads(file.read_text())[check]

    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("check", sampled(SLOW, CHECKS))
def test_three_replicas(outcomes, check):
    what_went_wrong = outcomes(check)
    assert not what_went_wrong, what_went_wrong


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 512])
def test_votes_of_n_replicas_fit_their_digits(n):
    base, digits = replicas.vote_digits(n)
    assert base > 2 * n  # All n vote 2.
    largest = sum(2 * n * base**i for i in range(digits))
    assert largest < 2**31  # In an int32, without touching the sign.
    assert base ** (digits + 1) > 2**31  # And no digit more would fit.


@pytest.mark.parametrize(
    ("examples", "size", "total"), [(20, 6, 4), (7, 7, 2), (9, 4, 1), (5, 3, 8)]
)
def test_shards_cover_every_example_once(examples, size, total):
    x = np.arange(1, examples + 1, dtype="float32")
    batches = Batches(x, 10 * x, size)
    shards = [Shards(batches, LocalReplicas(i, 1, total)) for i in range(total)]
    seen = []
    for k in range(len(batches)):
        parts = [shard[k] for shard in shards]
        assert len({len(p[0]) for p in parts}) == 1  # Equal parts.
        rows, _, weights = (np.concatenate(arrays) for arrays in zip(*parts))
        seen.extend(rows[weights > 0])
        mean = (rows * weights).mean()  # What Keras makes of weights.
        np.testing.assert_allclose(mean, batches[k][0].mean(), rtol=1e-6)
        for part in parts:
            np.testing.assert_array_equal(part[1], 10 * part[0])
    assert seen == list(x)  # In order, nothing twice, nothing left out.


def test_evaluation_weights_give_the_mean_over_all_examples():
    x = np.arange(1, 12, dtype="float32")
    batches = Batches(x, x, 4)
    shards = [Shards(batches, LocalReplicas(i, 1, 3), True) for i in range(3)]
    parts = [shard[k] for shard in shards for k in range(len(batches))]
    total = sum((rows * weights).sum() for rows, _, weights in parts)
    count = sum(len(rows) for rows, _, _ in parts)
    np.testing.assert_allclose(total / count, x.mean(), rtol=1e-6)


def test_processes_with_several_replicas_take_consecutive_rows():
    x = np.arange(8, dtype="float32")
    shards = Shards(Batches(x, x, 8), LocalReplicas(2, 2, 4))
    np.testing.assert_array_equal(shards[0][0], [4, 5, 6, 7])


def test_shards_are_shuffled_by_seed_and_epoch_alone():
    x = np.arange(12, dtype="float32")
    first, second = (Batches(x, x, 4, seed=3) for _ in range(2))
    first.shuffle(0)
    second.shuffle(5)
    second.shuffle(0)
    rows = [
        Shards(b, LocalReplicas(i, 1, 2))[k][0]
        for i, b in enumerate((first, second))
        for k in range(3)
    ]
    assert sorted(np.concatenate(rows)) == list(x)


def test_one_replica_has_nothing_to_compare():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(svag_tf.SSD(aggregation="majority_vote"), "mse")
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0,
              callbacks=[distribution.ReplicaCheck()])  # fmt: skip
    assert distribution.check_replicas(model) == 1
    assert distribution.local_state(model) == []
    assert model.optimizer.payload is None


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "epoch"])
def test_replica_check_refuses(every):
    with pytest.raises(ValueError, match=f"Received: every={every!r}"):
        distribution.ReplicaCheck(every)


def test_loss_scaling_is_for_the_optimizers_of_this_package():
    with pytest.raises(TypeError, match=r"must be an optimizer of svag_tf. Received"):
        distribution.LossScaleOptimizer(keras.optimizers.SGD())


def test_local_state_of_other_shapes_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(svag_tf.MSSD(aggregation="majority_vote"))
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=r"\[\(1, 2, 1\), \(1, 1\)\].*Received: \[\]"):
        distribution.set_local_state(model, [])
