"""Packaging: what svag-tf is, what it needs, and what each extra adds."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """`__version__` of svag_tf/__init__.py, read without importing Keras."""
    text = (ROOT / "svag_tf" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("svag_tf/__init__.py must hold a line __version__ = ...")
    return found.group(1)


EXPERIMENTS = [
    "filelock>=3.15",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "plotly>=6.0",
    "optuna>=4.0",
    "rich>=13.0",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "sqlalchemy>=2.0",
    "tensorboard>=2.18",
]
TEST = [*EXPERIMENTS, "hypothesis>=6.100", "pytest>=8.0", "pytest-xdist>=3.5"]

setup(
    name="svag-tf",
    version=version(),
    description=(
        "M-SVAG, SVAG and the sign methods of the paper 'Dissecting Adam' "
        "as Keras 3 optimizers"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["optimizer", "keras", "tensorflow", "svag", "adam", "variance"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["svag_tf", "svag_tf.*"]),
    package_data={
        "svag_tf": ["py.typed"],
        "svag_tf.experiments.comparison": ["*.json", "*.md"],
        "svag_tf.experiments.benchmark": ["limit.c"],
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.0",
        "keras>=3.10",
        "ml_dtypes>=0.4",
        "numpy>=1.26",
        "tensorflow>=2.18",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.18"],
        "jax": ["jax"],
        "torch": ["torch"],
        "experiments": EXPERIMENTS,
        "test": TEST,
        "dev": [*TEST, "build>=1.0", "mypy~=2.4", "pre-commit>=3.5", "ruff~=0.17.0"],
    },
    zip_safe=False,
)
