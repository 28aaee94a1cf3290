"""The blocks of Python in README.md and docs/ run, page by page.

The blocks of a page run in order in one namespace, in an empty folder; those with
prompts (`pycon`) are compared with what they print. Of comments that no reader sees,

    <!-- run:
    code
    -->

runs too, and `<!-- not run: why -->` before a block leaves it out.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIECE = re.compile(
    r"^<!-- run:\n(?P<hidden>.*?)^-->$"
    r"|^(?P<left_out><!-- not run: [^\n]+ -->\n\n?)?"
    r"```(?P<kind>python|pycon)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
OTHER_BACKEND = re.compile(r'os\.environ\["KERAS_BACKEND"\] = "(\w+)"')
FAST = ("README.md",)


def pieces(page):
    """The kind, code and first line of what a page runs."""
    text = page.read_text("utf-8")
    for match in PIECE.finditer(text):
        if match["left_out"]:
            continue
        group = "hidden" if match["hidden"] is not None else "code"
        line = text.count("\n", 0, match.start(group))
        yield match["kind"] or "python", match[group], line


def pages():
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    parameters = []
    for page in found:
        if page.exists() and any(pieces(page)):
            name = page.relative_to(ROOT).as_posix()
            marks = () if name in FAST else pytest.mark.slow
            parameters.append(pytest.param(page, marks=marks, id=name))
    return parameters


def run(page, kind, code, line, namespace):
    if kind == "python":
        # Empty lines before it: a traceback then has the page's line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(code, namespace, page.name, page, line)
    said = []
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    runner.run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("page", pages())
def test_blocks(page, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for kind, code, line in pieces(page):
        if not OTHER_BACKEND.search(code):
            run(page, kind, code, line, namespace)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("jax", "torch")],
)
def test_blocks_of_other_backends(backend, tmp_path):
    """Each in a process of its own, as the backend is chosen before Keras' import."""
    codes = [
        code
        for parameter in pages()
        for _, code, _ in pieces(*parameter.values)
        if OTHER_BACKEND.findall(code) == [backend]
    ]
    if not codes:
        pytest.skip("no docs/recipes.md: this is not a clone")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("KERAS_BACKEND", None)
    for code in codes:
        command = [sys.executable, "-c", code]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
