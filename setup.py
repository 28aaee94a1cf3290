"""Installs `scripts/` and `configs/` as parts of the package; see pyproject.toml."""

from setuptools import find_packages, setup

INSTALLED_AS = {
    "svag_tf.experiments.commands": "scripts",
    "svag_tf.experiments.configs": "configs",
}

setup(
    packages=[*find_packages(include=["svag_tf", "svag_tf.*"]), *INSTALLED_AS],
    package_dir=INSTALLED_AS,
)
