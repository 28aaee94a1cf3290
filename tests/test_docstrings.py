"""Public docstrings: their examples run, and their arguments exist."""

import doctest
import inspect
import re

import pytest
import table

from svag_tf import rules

CLASSES = table.classes()


@pytest.mark.parametrize("cls", CLASSES)
def test_there_is_an_example(cls):
    """It is run where pytest collects the docstrings of all modules."""
    (test,) = doctest.DocTestFinder(recurse=False).find(cls, cls.__name__)
    assert len(test.examples) >= 4


@pytest.mark.parametrize("cls", CLASSES)
def test_every_argument_is_documented_with_its_default(cls):
    assert "{{" not in cls.__doc__
    arguments = cls.__doc__.partition("Args:")[2].partition("Raises:")[0]
    documented = re.findall(
        r"^ {8}(\w+): (.*?)(?=^ {8}\w+:|\Z)", arguments, re.M | re.S
    )
    parameters = inspect.signature(cls).parameters
    assert [name for name, _ in documented] == list(parameters)
    for name, text in documented:
        default = parameters[name].default
        said = " ".join(text.split()).partition("Defaults to ")[2]
        shown = f'"{default}"' if isinstance(default, str) else f"{default}"
        assert said.startswith(f"`{shown}`"), (name, text)


@pytest.mark.parametrize("cls", CLASSES)
def test_sections(cls):
    for section in ("Equation", "Slots:", "Args:", "Raises:", "Example:", "Reference:"):
        assert section in cls.__doc__


def test_every_rule_has_a_docstring():
    functions = [
        f
        for name, f in vars(rules).items()
        if inspect.isfunction(f) and not name.startswith("_")
    ]
    assert len(functions) > 5
    assert all(f.__doc__ for f in functions)
