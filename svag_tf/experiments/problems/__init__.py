"""Learning problems: the data, and the model that learns it.

A new problem is a function that loads its data, one that builds its model, and a row
in `PROBLEMS`.
"""

from __future__ import annotations

from svag_tf.experiments.problems import cifar, data, quadratic, tolstoi
from svag_tf.experiments.problems.digits import digits_cnn, digits_mlp
from svag_tf.experiments.problems.fashion_mnist import fmnist_2c2d
from svag_tf.experiments.problems.problem import Prepare, Problem

__all__ = ["PROBLEMS", "Prepare", "Problem"]

PROBLEMS = {
    "digits": Problem(data.load_digits, digits_cnn),
    "digits_label_noise": Problem(
        data.load_digits_label_noise, digits_mlp, tuned_by="train_loss"
    ),
    "fmnist_2c2d": Problem(data.load_fashion_mnist, fmnist_2c2d),
    "cifar10_3c3d": Problem(
        cifar.load_cifar10,
        cifar.cifar10_3c3d,
        prepare_train=cifar.augmented,
        prepare_test=cifar.prepare_test,
    ),
    "cifar100_wrn404": Problem(
        cifar.load_cifar100,
        cifar.cifar100_wrn404,
        prepare_train=cifar.augmented,
        prepare_test=cifar.prepare_test,
    ),
    "tolstoi_char_rnn": Problem(
        tolstoi.load_war_and_peace,
        tolstoi.tolstoi_char_rnn,
        streams=tolstoi.STREAMS,
    ),
    "quadratic_deep": Problem(
        quadratic.load_points,
        quadratic.quadratic_deep,
        loss=lambda: quadratic.output_as_loss,
        accuracy=False,
    ),
}
