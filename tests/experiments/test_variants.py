"""Optimizers with arguments of their own: how they are written and named."""

import pytest

from svag_tf.experiments.comparison.variants import Variant, parse_variant, titles
from svag_tf.experiments.errors import ExperimentError


@pytest.mark.parametrize(
    "text, name, arguments",
    [
        ("msvag", "msvag", {}),
        ("adam:epsilon=1e-8", "adam", {"epsilon": 1e-8}),
        (
            "momentum:momentum=0.99:learning_rate=0.0025",
            "momentum",
            {"momentum": 0.99, "learning_rate": 0.0025},
        ),
        ("msvas:adaptation=adam", "msvas", {"adaptation": "adam"}),
        (
            "sgd:use_ema=True:ema_overwrite_frequency=5",
            "sgd",
            {"use_ema": True, "ema_overwrite_frequency": 5},
        ),
    ],
)
def test_what_is_read(text, name, arguments):
    variant = parse_variant(text)
    assert variant.name == name and dict(variant.arguments) == arguments
    assert parse_variant(variant.label) == variant
    assert variant.learning_rate == arguments.get("learning_rate")
    assert not set(variant.folder) & set(':/\\*?"<>| ')


@pytest.mark.parametrize(
    "text, message",
    [
        ("sdg", "optimizers must be of msvag.*Received: sdg"),
        ("adam:eps=1", "arguments of learning_rate, beta.*Received: adam:eps=1"),
        ("adam:epsilon", "written adam:argument=value"),
        ("adam:name=sgd", "written adam:argument=value"),
        ("adam:epsilon=1:epsilon=2", "each once"),
        ("adam:epsilon=small", "optimizer.epsilon must be a finite number >= 0"),
        ("adam:use_ema=yes", "optimizer.use_ema must be True or False"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ExperimentError, match=message):
        parse_variant(text)


def test_titles_tell_variants_apart():
    texts = ["adam", "adam:epsilon=1e-8", "sgd:learning_rate=0.1", "ssd",
             "ssd:learning_rate=0.1", "momentum:momentum=0.99"]  # fmt: skip
    variants = [parse_variant(text) for text in texts]
    assert list(titles(variants).values()) == [
        "Adam",
        "Adam (epsilon 1e-08)",
        "SGD",
        "SSD",
        "SSD (learning rate 0.1)",
        "SGD, momentum 0.99",
    ]
    assert titles([Variant("adam")]) == {"adam": "Adam"}
