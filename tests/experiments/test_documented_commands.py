"""The commands in README.md, CONTRIBUTING.md and docs/ run, with tiny sizes.

Those of a block run in order, in a folder that looks like a clone. Flags are added to
make them short; what cannot run is skipped, and the reason names what to do instead.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_data import write
from test_docs import ROOT, text_of_pages
from test_own_problem import documented
from test_simulation_scripts import TINY as SIMULATIONS

SIZES = (
    "--config.epochs=1 --config.batch_size=32 --config.train_examples=64 "
    "--config.test_examples=32"
)
FASHION = "--config.data_dir=fashion"
# A pattern of a command, and what is added to it. All that fit are added. A flag in it
# takes the place of the command's own, whose value test_flags_of_all_commands parses.
ADDED = {
    r"compare\.py|train\b(?!.*--help)|launch_local\.py": SIZES,
    r"compare\.py": "--notune --seeds=0",
    r"compare\.py(?!.*--(optimizers|published))": "--optimizers=msgd",
    r"fmnist_2c2d": FASHION,
    r"noise\.preset": "--config.noise.every=1",
    r"schedule\.boundaries": "--config.schedule.boundaries='(1,)' --config.epochs=2",
    r"benchmark\.py(?!.*--fill)": "--quick --nofresh",
    **{rf"{name}\.py": shlex.join(flags) for name, flags in SIMULATIONS.items()},
}
# A pattern of commands, and what runs before: what a reader then has already.
BEFORE = {
    r"report runs/mine": "python scripts/train.py --config.noise.preset=full "
    f"--config.noise.every=1 {SIZES} --workdir=runs/mine && "
    "cp -r runs/mine runs/another",
}
LEFT_OUT = {
    r"pip install .* && ": ".ci/run does it",
    r"SLURM|srun": "needs Slurm",
    r"^for process|p1-full|^done$|^wait$": "needs a GPU, and hours",
    r"^pip |^export |\.venv|^pre-commit": "needs a network; .ci/run installs",
    r"python -m pytest": "these are the tests",
    r"^ruff|^mypy": ".ci/run does it; it may change files",
    r"^mkdocs": "a server; .ci/run builds the site",
    r"^\.ci/": "takes long: everything, from nothing",
    r"postgresql": "needs a database server",
    r"^python -m svag_tf\.native": "tests/test_native.py makes a build",
}
# Patterns of what CI runs.
SLOW = (
    r"^svag --help$",
    r"^python -c ",
)


def blocks():
    """The path of a page, and the commands of one of its blocks, or one in a line."""
    for page, text in text_of_pages().items():
        name = page.relative_to(ROOT).as_posix()
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
            if block.startswith("#!"):
                yield name, [block]
                continue
            lines = block.replace("\\\n", " ").splitlines()
            yield name, [re.sub(r"\s+# .*", "", line) for line in lines]
        for line in re.findall(r"`((?:python scripts/|svag )[^`]*--[^`]*)`", text):
            yield name, [" ".join(line.split())]


def matching(patterns, command):
    return [text for pattern, text in patterns.items() if re.search(pattern, command)]


def shortened(command):
    for flags in matching(ADDED, command):
        for name in re.findall(r"--[\w.]+(?==)", flags):
            command = re.sub(rf""" {name}=("[^"]*"|\S+)""", "", command)
        command = f"{command} {flags}"
    return command


def cases():
    """Every block once: what of it runs, and what of it is left out."""
    seen = set()
    for page, commands in blocks():
        new = [command for command in commands if command not in seen]
        seen.update(new)
        for command in new:
            if reasons := matching(LEFT_OUT, command):
                first = command.splitlines()[0]
                skip = pytest.mark.skip(reason=f"{first}: {reasons[0]}")
                yield pytest.param([command], marks=skip, id=f"{page}-{first}")
        runs = [command for command in new if not matching(LEFT_OUT, command)]
        if runs:
            in_ci = any(re.search(pattern, runs[0]) for pattern in SLOW)
            marks = [pytest.mark.slow if in_ci else pytest.mark.exhaustive]
            marks += [
                pytest.mark.needs(b) for b in re.findall(r"BACKEND=(\w+)", str(runs))
            ]
            yield pytest.param(runs, marks=marks, id=f"{page}-{runs[0]}")


@pytest.fixture
def clone(tmp_path):
    """A folder with what the commands use, and a small Fashion-MNIST."""
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(
        ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png")
    )
    documented(tmp_path)  # my_problem.py
    (tmp_path / "fashion").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28))
    labels = np.arange(64) % 10
    write(tmp_path / "fashion", [images, labels, images, labels])
    return tmp_path


@pytest.mark.parametrize("commands", list(cases()))
def test_a_command_of_the_documents_runs(commands, clone):
    pytest.importorskip("tensorflow")
    script = "\n".join(
        [
            *(text for c in commands for text in matching(BEFORE, c)),
            *map(shortened, commands),
        ]
    )
    svag = "import svag_command as c; c.main()"
    (clone / "svag").write_text(f'#!/bin/sh\nexec python -c "{svag}" "$@"\n')
    (clone / "svag").chmod(0o755)
    path = [str(clone), os.path.dirname(sys.executable), os.environ["PATH"]]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(clone / "cache"),
    }
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=clone, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
