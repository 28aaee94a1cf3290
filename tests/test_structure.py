"""The parts of the package use one another as CONTRIBUTING.md says."""

import ast
import re
from pathlib import Path

import pytest

import svag_tf

PACKAGE = Path(svag_tf.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


# Where parts are -> how their modules begin.
ROOMS = {"": "svag_tf", "experiments/": "svag_tf.experiments"}
FLOORS = 5  # of either; ten in all


def parts(room=""):
    """The map: part -> the parts that it may use."""
    if not CONTRIBUTING.exists():
        pytest.skip("no CONTRIBUTING.md: this is not a clone")
    row = rf"^\| `{room}(\w+)` \|.*\|([^|]*)\|$"
    rows = re.findall(row, CONTRIBUTING.read_text(), re.M)
    return {name: {*re.findall(r"\w+", used)} for name, used in rows}


def imports(path):
    """Names of the modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def files(room):
    """The files of a room, each with its part."""
    folder = PACKAGE / room
    for path in folder.rglob("*.py"):
        if path.parent != folder or path.stem[0] != "_":
            yield path, path.relative_to(folder).with_suffix("").parts[0]


@pytest.mark.parametrize("room", ROOMS)
def test_every_part_is_on_the_map(room):
    assert {part for _, part in files(room)} == parts(room).keys()


@pytest.mark.parametrize("room", ROOMS)
def test_files_are_short(room):
    lengths = {p: len(p.read_text("utf-8").splitlines()) for p, _ in files(room)}
    assert not [path for path, length in lengths.items() if length > 400]


@pytest.mark.parametrize("room", ROOMS)
def test_parts_use_what_the_map_says(room):
    allowed, wrong = parts(room), []
    for path, part in files(room):
        if (room, part) == ("", "experiments"):  # It may use all of them.
            continue
        for name in imports(path):
            package, _, rest = name.partition(f"{ROOMS[room]}.")
            used = rest.partition(".")[0]
            if not package and used and used not in {part, *allowed[part]}:
                wrong.append(f"{path.relative_to(PACKAGE)} uses {name}")
    assert not wrong


def test_the_map_has_no_circle_and_few_floors():
    """A part stands above all that it uses; `experiments` stands on all others."""
    for room in ROOMS:
        floors, left = 0, parts(room)
        left.pop("experiments", None)
        while left:
            free = [part for part, used in left.items() if not used & left.keys()]
            assert free, f"a circle among {sorted(left)}"
            for part in free:
                del left[part]
            floors += 1
        assert floors <= FLOORS
