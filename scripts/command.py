"""Shared by the commands: the flag --config, quiet imports and short errors."""

import contextlib
import importlib
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def missing(error: ImportError) -> str:
    """Returns a message on how to install a missing package."""
    reason = str(error).rstrip(".")
    if "Remedy:" in reason:
        return f"Error: {reason}"
    return (
        f'Error: {reason}. The commands need: pip install "svag-tf[experiments]" '
        '(in a clone: pip install ".[experiments]")'
    )


try:
    from absl import app, flags, logging
    from ml_collections import config_flags
except ImportError as error:
    sys.exit(missing(error))

_BY_SVAG = "svag_command" in sys.modules
_MAIN = sys.modules["__main__"]
if _BY_SVAG and _MAIN.__doc__:  # What --help shows.
    _MAIN.__doc__ = re.sub(
        r"(?:python )?scripts/(\w+)\.py|configs/(\w+)\.py",
        lambda match: f"svag {match[1]}" if match[1] else match[2],
        _MAIN.__doc__,
    )

# How this command was called, for its results.
_PROGRAM = ["svag", Path(sys.argv[0]).stem] if _BY_SVAG else ["python", sys.argv[0]]
LINE = shlex.join([*_PROGRAM, *sys.argv[1:]])
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def define_config(default: str = "digits.py") -> Callable[[], tuple[Any, str]]:
    """Defines the flag --config.

    Args:
        default: the name of a file in configs/.

    Returns:
        A function that returns, after the flags are parsed, the config and the stem of
        its file's name.
    """
    _find_by_name()
    _check_file(str(CONFIGS / default))
    with _errors_of_fields():
        holder = config_flags.DEFINE_config_file(
            "config",
            str(CONFIGS / default),
            "The config file, or the name of one that is installed: "
            f"{_installed()}. Any field can be overridden: --config.epochs=5.",
            lock_config=True,
        )

    _show_in_help("config")

    def config() -> tuple[Any, str]:
        path = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
        return holder.value, path.stem

    return config


@contextlib.contextmanager
def _errors_of_fields() -> Iterator[None]:
    """Makes errors of the fields of --config short, wherever they are parsed.

    Those of the default file are parsed when the flag is defined, those of another file
    with the other flags.
    """
    try:
        yield
    except (AttributeError, KeyError) as error:
        reason: Any = error
        while isinstance(reason, Exception):  # KeyError("'epoch'") in AttributeError
            reason = reason.args[0]
        sys.exit(
            "Error: the fields of --config are those of its file. Received: "
            + " ".join(str(reason).split())
        )
    except (TypeError, ValueError) as error:
        sys.exit(f"Error: bad field in --config: {' '.join(str(error).split())}")


def _show_in_help(flag: str) -> None:
    """Makes --help show a flag that is defined here among those of the command."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag])


def simulate(name: str) -> None:
    """Runs the command of a simulation, with its flags --config and --workdir.

    Args:
        name: the simulation's, a module in `svag_tf.experiments.simulations`, and that
            of its file in configs/.
    """
    given = define_config(f"{name}.py")
    workdir = flags.DEFINE_string(
        "workdir", f"runs/{name.replace('_', '-')}", "Folder for the results."
    )
    _show_in_help("workdir")

    def main() -> None:
        simulation = importlib.import_module(f"svag_tf.experiments.simulations.{name}")
        config, _ = given()
        simulation.simulate(config, workdir.value, LINE)

    run(main)


def _find_by_name() -> None:
    """Replaces the name of an installed config file, in --config, by its path."""
    for i, one in enumerate(sys.argv):
        flag, equals, value = one.rpartition("=")
        name, colon, argument = value.partition(":")
        named = flag in ("--config", "-config") or sys.argv[i - 1] in (
            "--config",
            "-config",
        )
        path = CONFIGS / f"{name}.py"
        if named and path.is_file() and not Path(name).is_file():
            sys.argv[i] = f"{flag}{equals}{path}{colon}{argument}"


def _installed() -> str:
    """Returns the names of the installed config files, in one string."""
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py")))


def _check_file(default: str) -> None:
    """Runs the config file once before the flags are parsed, for a one-line error.

    Otherwise its errors would appear in many ways, with long tracebacks.
    """
    given = default
    for one, following in zip(sys.argv[1:], [*sys.argv[2:], ""]):
        flag, _, value = one.partition("=")
        if flag in ("--config", "-config"):
            given = value or following
    name, *argument = given.split(":", 1)
    if not Path(name).is_file():
        sys.exit(
            "Error: --config must be a config file or the name of one that is "
            f"installed: {_installed()}. Received: {name}"
        )
    try:
        with _quiet():
            get_config = runpy.run_path(name).get("get_config")
            config = get_config and get_config(*argument)
    except Exception as error:
        sys.exit(f"Error: the config file {name} failed{_reason(error)}")
    if not hasattr(config, "to_dict"):
        sys.exit(
            f"Error: the config file {name} must have a function get_config() that "
            f"returns a ConfigDict. Received: {config!r}"
        )


def _reason(error: Exception) -> str:
    """Says where the user's code failed and why."""
    try:
        with _quiet():
            from svag_tf.experiments.errors import place_and_reason
    except ImportError as missed:
        sys.exit(missing(missed))
    within = error.__traceback__ and error.__traceback__.tb_next  # Without this file.
    return place_and_reason(error.with_traceback(within))


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`. Exit code: 0 if it succeeds, else not 0."""

    def alone(arguments: list[str]) -> None:
        if arguments:
            sys.exit(
                "Error: all arguments must be flags, such as --config=digits. "
                f"Received: {' '.join(arguments)}"
            )
        main()

    run_with_arguments(alone)


def run_with_arguments(main: Callable[[list[str]], None]) -> None:
    """Runs `main` as `run` does, with the arguments after the flags."""

    def parsed(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            with _quiet():
                from svag_tf.experiments.errors import ExperimentError
        except ImportError as error:
            sys.exit(missing(error))
        try:
            main(argv[1:])
        except ImportError as error:
            sys.exit(missing(error))
        except (ExperimentError, OSError) as error:
            sys.exit(f"Error: {error}")
        except KeyboardInterrupt:
            sys.exit("Interrupted. The same command resumes from what is finished.")

    def parse(argv: list[str]) -> Any:
        with _errors_of_fields():
            return app.parse_flags_with_usage(argv)

    app.run(parsed, flags_parser=parse)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops the output of native code to stderr: TensorFlow's messages on import."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
