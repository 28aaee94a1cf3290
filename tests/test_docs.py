"""The blocks of Python in README.md and docs/ run, page by page.

The blocks of a page run in order in one namespace, in an empty folder; those with
prompts (`pycon`) are compared with what they print. Of comments that no reader sees,

    <!-- run:
    code
    -->

runs too, and `<!-- not run: why -->` before a block leaves it out.
"""

import doctest
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import svag_tf

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
def test_the_notebook(tmp_path, monkeypatch):
    """Its cells run; what they print stands there as some run has printed it."""
    pytest.importorskip("tensorflow")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    notebook = ROOT / "docs" / "getting_started.ipynb"
    if not notebook.exists():
        pytest.skip("no docs/getting_started.ipynb: this is not a clone")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setattr(pyplot, "show", pyplot.close)
    namespace = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    for history in namespace["histories"].values():
        assert history["val_accuracy"][-1] > 0.8
    assert (tmp_path / "runs" / "digits-noise" / "report.html").exists()


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


def text_of_pages():
    """The text of README.md, CONTRIBUTING.md and all of docs/, by path."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not found:
        pytest.skip("no README.md: this is not a clone")
    return {page: page.read_text("utf-8") for page in found}


def test_commands_name_scripts_and_configs_that_exist():
    named = re.compile(
        r"(?<![\w/.])(?:scripts|configs|docs/examples|tests)/[\w/]+\.\w+"
    )
    paths = {
        (page.name, path)
        for page, text in text_of_pages().items()
        for path in named.findall(text)
    }
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path[1]).exists()] == []


def commands_of_scripts(text):
    """The commands of blocks of Bash that run a script: its name and its flags."""
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
        lines = block.replace("\\\n", " ")
        for line in re.findall(r"python scripts/(\w+\.py.*)", lines):
            script, *flags = shlex.split(line, comments=True)
            if script == "launch_local.py" and "--" in flags:
                at = flags.index("--")
                yield "train.py", flags[at + 1 :]
                flags = flags[:at]
            yield script, [flag for flag in flags if not flag.startswith("$")]


@pytest.mark.slow
def test_flags_of_all_commands():
    """They and the fields of the config are parsed; nothing runs.

    They run, with tiny sizes, in tests/experiments/test_documented_commands.py.
    """
    pytest.importorskip("ml_collections")
    commands = {
        (script, *flags)
        for text in text_of_pages().values()
        for script, flags in commands_of_scripts(text)
        if "--config=my_problem.py" not in flags  # See test_own_problem.py.
    }
    assert len(commands) > 20
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for script, *flags in sorted(commands):
        command = [sys.executable, f"scripts/{script}", *flags, "--only_check_args"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (script, flags, done.stderr)


def anchors(text):
    """What `#...` may name, as both GitHub and the site make it of headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def test_links_lead_somewhere():
    """Of the pages that are not on the site, too, where `mkdocs build` checks them."""
    texts, broken = text_of_pages(), []
    for page, text in texts.items():
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            lost = target.suffix == ".png" and not (ROOT / "docs" / "images").exists()
            missing = not target.exists() and not lost  # Lost in a source archive.
            if missing or (anchor and anchor not in anchors(texts[target])):
                broken.append((page.name, link))
    assert not broken


@pytest.mark.parametrize("url", ["", "https://example.org/svag-tf"])
def test_a_package_index_shows_no_link_to_a_file_beside_the_readme(url, monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    if not (ROOT / "README.md").exists():
        pytest.skip("no README.md: this is not a clone")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    text = runpy.run_path(str(ROOT / "setup.py"))["readme"](url)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all(link.startswith("https://") for link in links)
    assert (f"({url}/raw/main/docs/images/digits.png)" in text) == bool(url)
    assert (f"({url}/blob/main/docs/choosing.md#" in text) == bool(url)
    assert "All rules" in text


def project():
    """What pyproject.toml says of the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_one_version_everywhere():
    if not (ROOT / "CITATION.cff").exists():
        pytest.skip("no CITATION.cff: this is not a clone")
    version = svag_tf.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[([\d.]+)\]", text, re.M)
    assert released[0] == version


def test_every_python_that_is_named_was_tested():
    """With at least one version of TensorFlow, in the table of docs/versions.md."""
    if not (ROOT / "docs" / "versions.md").exists():
        pytest.skip("no docs/versions.md: this is not a clone")
    table = (ROOT / "docs" / "versions.md").read_text("utf-8")
    outcome = r"\d+ passed(?:, \d+ skipped)? \|$"
    passed = re.findall(rf"^\| ([\d.]+), tensorflow,.*\| {outcome}", table, re.M)
    kind = "Programming Language :: Python :: 3."
    named = [c for c in project()["classifiers"] if c.startswith(kind)]
    assert named and {c.split()[-1] for c in named} <= set(passed)


def test_the_workflows_run_what_exists():
    workflows = [*(ROOT / ".github" / "workflows").glob("*.yml")]
    if not workflows:
        pytest.skip("no .github: this is not a clone")
    text = "".join(workflow.read_text("utf-8") for workflow in workflows)
    paths = set(re.findall(r"(?<![\w/])((?:\.ci|scripts)/[\w.]+)", text))
    assert len(paths) >= 2
    assert all(os.access(ROOT / path, os.X_OK) for path in paths)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_an_installation_without_tensorflow_names_all_requirements(page):
    names = {re.match(r"[\w-]+", text)[0] for text in project()["dependencies"]}
    text = (ROOT / page).read_text("utf-8")
    (line,) = re.findall(r'^pip install "keras.*$', text, re.M)
    assert set(re.findall(r"[\w-]{3,}", line)) >= names - {"tensorflow"}
