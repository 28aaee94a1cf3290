"""The command `svag`: what `scripts/` does, without a clone.

    svag train --config=fmnist_2c2d --workdir=runs/fmnist
    svag --help

It is outside the package svag_tf, whose import takes seconds and needs Keras.
"""

import ast
import importlib.metadata
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = HERE / "svag_tf" / "experiments" / "commands"
if not COMMANDS.is_dir():  # In a clone.
    COMMANDS = HERE / "scripts"


def main() -> None:
    """Runs the script that the first argument names, with those that follow."""
    scripts = {p.stem: p for p in sorted(COMMANDS.glob("*.py")) if p.stem != "command"}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in scripts:
        sys.argv[:2] = [str(scripts[name])]
        sys.path.insert(0, str(COMMANDS))
        runpy.run_path(str(scripts[name]), run_name="__main__")
    elif name in ("--help", "-h"):
        print("usage: svag COMMAND [FLAGS]; svag COMMAND --help shows the flags\n")
        for name, path in scripts.items():
            about = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            print(f"  {name:20} {about.splitlines()[0]}")
    elif name == "--version":
        print(f"svag-tf {importlib.metadata.version('svag-tf')}")
    else:
        sys.exit(
            f"Error: the command must be one of {', '.join(scripts)}. Received: {name}"
        )
