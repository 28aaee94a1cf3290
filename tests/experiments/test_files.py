"""Files that are whole or absent."""

import json
import math
import os
import re

import pytest

from svag_tf.experiments import files
from svag_tf.experiments.errors import ExperimentError


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def test_replaces_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_written(tmp_path):
    assert files.writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    path = tmp_path / "file"
    path.touch()
    expected = "Argument `workdir` must be a folder that can be written. Received: "
    expected += f"workdir={str(path)!r}: File exists"
    with pytest.raises(ExperimentError, match=re.escape(expected)):
        files.writable_folder(path)


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.keras"
    files.write_text(path, "old")

    def killed(*args):
        raise Killed

    if moment == "before the rename":
        monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed), files.replacing(path) as temporary:
        assert temporary.suffix == ".keras"
        temporary.write_text("ne")
        if moment == "while writing":
            killed()
    assert path.read_text() == "old"
    assert temporary.exists()  # as after a kill
    files.remove_temporaries(tmp_path, "b.*")
    assert temporary.exists()
    files.remove_temporaries(tmp_path, "*.keras")
    assert os.listdir(tmp_path) == ["a.keras"]


def test_the_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    files.write_json(tmp_path / "a.json", {})
    assert calls == ["fsync", "rename", "fsync"]


def test_a_failed_write_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"Cannot write .*file/a\.txt"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "results.json"
    value = {"loss": [1.5, math.nan], "worst": (-math.inf, 2), "name": "NaN"}
    files.write_json(path, value)
    expected = {"loss": [1.5, None], "worst": [None, 2], "name": "NaN"}
    assert json.loads(path.read_text()) == expected


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"\xff\xfe"])
def test_a_corrupt_json_file_is_named(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=r"state\.json is corrupt"):
        files.read_json(path)
