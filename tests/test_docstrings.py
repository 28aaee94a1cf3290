"""Public docstrings: their examples run, and their arguments exist."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
import table

import svag_tf
from svag_tf import rules

CLASSES = table.classes()
PAGES = Path(__file__).parents[1] / "docs" / "api"


def public():
    """Everything public that has a docstring of its own, by its name."""
    found = {name: getattr(svag_tf, name) for name in svag_tf.__all__}
    modules = [name for name, value in found.items() if inspect.ismodule(value)]
    for name in modules:
        module = found.pop(name)
        of_module = getattr(module, "__all__", None) or [
            key
            for key, value in vars(module).items()
            if not key.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
        ]
        found |= {f"{name}.{key}": getattr(module, key) for key in of_module}
    found.pop("__version__")
    return found


def parameters(documented):
    """The names of what a function or class takes by its own signature."""
    kinds = inspect.Parameter
    return [
        name
        for name, parameter in inspect.signature(documented).parameters.items()
        if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]


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
    functions = {
        name: f
        for name, f in vars(rules).items()
        if inspect.isfunction(f) and not name.startswith("_")
    }
    assert len(functions) > 5
    assert all(f.__doc__ for f in functions.values())
    if (PAGES / "rules.md").exists():  # In a clone.
        named = re.findall(r"^ +- (\w+)$", (PAGES / "rules.md").read_text(), re.M)
        assert sorted(named) == sorted(functions)


def test_everything_public_is_in_the_reference():
    if not PAGES.exists():
        pytest.skip("no docs/api: this is not a clone")
    text = "".join(page.read_text() for page in PAGES.glob("*.md"))
    named = re.findall(r"^::: svag_tf\.(\S+)$", text, re.M)
    others = {"optimizers.base.MomentOptimizer", "rules"}
    assert sorted(named) == sorted({*public(), *others})


@pytest.mark.parametrize("name", public())
def test_docstrings_are_complete(name):
    """Arguments, errors and an example, where there are any."""
    value = public()[name]
    doc = inspect.getdoc(value)
    if "Attributes:" in doc or value is svag_tf.OptimizerStateWarning:
        return  # A result, an error or a warning: nobody makes one.
    for argument in parameters(value):
        assert re.search(rf"^    {argument}: ", doc, re.M), argument
    source = inspect.getsource(value.__init__ if inspect.isclass(value) else value)
    if re.search(r"^ +raise ", source, re.M):
        assert "Raises:" in doc
    assert "Example:" in doc
