"""For the site: what the reader of a docstring sees where the code only has a mark."""

import ast
import re
from pathlib import Path

import griffe

ARGUMENTS = Path(__file__).parents[1] / "svag_tf" / "optimizers" / "arguments.py"
DOCTEST = re.compile(r"^( *)>>> .*?(?=^\s*$|\Z)", re.M | re.S)


def shared_arguments() -> str:
    """The arguments that all optimizers take, put into their docstrings at run time."""
    for node in ast.parse(ARGUMENTS.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "KERAS_ARGUMENTS":
            return node.value.value.replace("\n    ", "\n")
    raise LookupError(f"KERAS_ARGUMENTS is not in {ARGUMENTS}")


def fenced(match: re.Match[str]) -> str:
    """A doctest as a block of code: `>>>` alone is a quotation in Markdown."""
    space = match[1]
    return f"{space}```pycon\n{match[0].rstrip()}\n{space}```\n"


class Docstrings(griffe.Extension):
    """Completes all docstrings."""

    def on_instance(self, *, obj, **kwargs):
        """Changes a docstring before it is parsed."""
        if obj.docstring:
            text = obj.docstring.value.replace(
                "{{keras_arguments}}", shared_arguments()
            )
            obj.docstring.value = DOCTEST.sub(fenced, text)
