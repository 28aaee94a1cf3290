"""The command `svag`: its help, its errors, and what its results say of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_structure import PACKAGE
from tiers import sampled

import svag_command
from svag_tf.experiments import machine


def svag(*arguments, cwd):
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.getenv("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", "import svag_command as c; c.main()", *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command_and_what_it_does(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["svag", *arguments])
    svag_command.main()
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = {line[0]: line[1] for line in lines[2:]}
    assert {"train", "compare", "benchmark", "export", "report"} <= told.keys()
    assert (
        told["train"] == "Trains a problem with an optimizer, both named in a config."
    )
    scripts = {path.stem for path in svag_command.COMMANDS.glob("*.py")}
    assert told.keys() == scripts - {"command"}


def test_an_unknown_command_is_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["svag", "trian"])
    with pytest.raises(SystemExit, match=r"one of .*, train, .*\. Received: trian"):
        svag_command.main()


def test_results_name_the_command(tmp_path):
    flags = ("--elements=10", "--workdir=a folder")
    result = svag("replica_variance", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "a folder" / "results.json").read_text())
    command = "svag replica_variance --elements=10 '--workdir=a folder'"
    assert results["command"] == command


def test_help_shows_how_the_command_was_called(tmp_path):
    text = svag("train", "--help", cwd=tmp_path).stdout
    assert "    svag train --config=fmnist_2c2d --workdir=runs/fmnist\n" in text
    assert "python scripts" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    sampled(
        lambda flags: len(flags) == 1, [["--config=digits"], ["--config", "digits"]]
    ),
)
def test_training_with_a_config_that_is_installed(tmp_path, flags):
    tiny = ("--config.epochs=1", "--config.train_examples=32",
            "--config.test_examples=32")  # fmt: skip
    result = svag("train", *flags, *tiny, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "digits-msvag" / "metrics.csv").exists()


def test_the_repository_around_an_installed_package_is_another_one(
    tmp_path, monkeypatch
):
    def git(*arguments):
        me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
        subprocess.run(["git", "-C", str(tmp_path), *me, *arguments], check=True)

    module = tmp_path / "__init__.py"
    module.touch()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "empty")
    monkeypatch.setattr(machine.svag_tf, "__file__", str(module))
    assert machine._commit() is None
    git("add", str(Path(module)))
    git("commit", "-q", "-m", "the package")
    assert len(machine._commit()) >= 7
