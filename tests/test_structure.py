"""The parts of the package use one another as CONTRIBUTING.md says."""

import ast
import re
from pathlib import Path

import pytest

import svag_tf

PACKAGE = Path(svag_tf.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


def parts():
    """The map: part -> the parts that it may use."""
    if not CONTRIBUTING.exists():
        pytest.skip("no CONTRIBUTING.md: this is not a clone")
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", CONTRIBUTING.read_text(), re.M)
    return {name: used.replace(" ", "").split(",") for name, used in rows}


def imports(path):
    """Names of the modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files():
    return [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem[0] != "_"]


def test_every_part_is_on_the_map():
    assert {part_of(path) for path in files()} == parts().keys()


def test_parts_use_what_the_map_says():
    allowed, wrong = parts(), []
    for path in files():
        part = part_of(path)
        if part == "experiments":
            continue
        for name in imports(path):
            package, _, rest = name.partition(".")
            used = rest.partition(".")[0]
            if package == "svag_tf" and used not in (part, *allowed[part]):
                wrong.append(f"{path.relative_to(PACKAGE)} uses {name}")
    assert not wrong


def test_the_map_has_no_circle():
    left = {part: set(used) - {""} for part, used in parts().items()}
    left.pop("experiments")
    while left:
        free = [part for part, used in left.items() if not used & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for part in free:
            del left[part]
