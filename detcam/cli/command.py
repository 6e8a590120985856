"""Turns a dataclass of options and a function into a subcommand, with short errors, and warnings at the end."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import typer
from typer.core import TyperGroup

from detcam.cli.options import CommonOptions
from detcam.utils.console import printable
from detcam.utils.user_modules import import_modules
from detcam.utils.version import __version__

ERRORS = (TypeError, ValueError, RuntimeError, OSError, ImportError)
# The base class of all usage errors; typer vendors click since 0.20 and exports the subclass alone.
UsageError: Any = typer.BadParameter.__mro__[1]

RENAMED = {
    **dict.fromkeys(("--image-path", "--image", "--source"), "--images"),
    **dict.fromkeys(("--output-dir", "--project"), "--out"),
    "--conf": "--score-threshold",
    "--imgsz": "--image-size",
    "--use-cuda": "--device",
    "--classes": "--labels",
    "--data": "--annotations",
}
"""Options of grad-cam's script and of ultralytics' command, and their names here."""

CODE = re.compile(r"^ {4,}(def |return |from |adapter = |@)", re.MULTILINE)
"""Lines of Python in an error, which would not be code any more in one line."""

OptionsT = TypeVar("OptionsT", bound=CommonOptions)


def make_callback(options: type[OptionsT], run: Callable[[OptionsT], int]) -> Callable[..., None]:
    """Return the function that typer calls for a subcommand.

    Args:
        options: a dataclass whose fields are annotated with `typer.Option` or `typer.Argument`. typer reads the
            command line from them, and the values become one object.
        run: the command. It gets that object and returns the exit code.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]

    def callback(**values: Any) -> None:
        with one_line_errors(values["debug"], has_limit=values.get("max_memory") is not None):
            settings = options(**{name: _with_home(value) for name, value in values.items()})
            settings.check_paths()
            import_modules(settings.imports or [])
            with settings.context():
                code = run(settings)
        raise typer.Exit(code)

    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return callback


def _with_home(value: Any) -> Any:
    """Replace ``~`` in a path by the home folder: not all shells do, as after ``--out=``."""
    if not isinstance(value, Path):
        return value
    from detcam.utils.files import with_home  # imports NumPy

    return with_home(value)


class OneLineErrorGroup(TyperGroup):
    """A group of commands that reports a usage error in one line and exits with 2."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; arguments as in the base class."""
        if not options.pop("standalone_mode", True):
            return super().main(*args, **{**options, "standalone_mode": False})
        _prepare_streams()
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has enough
            _discard_output()
            sys.exit(1)  # as Python's documentation asks, and rich does
        except OSError as error:  # the last lines do not fit on a full disk
            _discard_output()
            print(f"detcam: cannot write the output ({_one_line(str(error))})", file=sys.stderr)
            sys.exit(2)
        except UsageError as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "detcam"
            text = _renamed(error, context) or error.format_message()
            print(f"{command}: {_one_line(text)} (see {command} --help)", file=sys.stderr)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


def _renamed(error: Any, context: Any) -> str:
    """Return the message for an option that has another name here; "" for any other error."""
    name = str(getattr(error, "option_name", ""))
    wanted = RENAMED.get(name.lower().replace("_", "-"))
    parameters = context.command.params if context else []
    if wanted == "--images" and any(parameter.name == "photos" for parameter in parameters):
        return f"No such option: {name}. Images stand without an option: {context.command_path} PHOTO... --model NAME"
    if any(wanted in parameter.opts for parameter in parameters):
        return f"No such option: {name}. Did you mean {wanted}?"
    return ""


def _prepare_streams() -> None:
    """Let stdout and stderr take any text in any encoding, also where they are closed."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Send what is left of stdout nowhere, or the interpreter would report the error again at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def one_line_errors(debug: bool, *, has_limit: bool = False) -> Iterator[None]:
    """Report an error on stderr and exit with 2, or with 130 after Ctrl-C; report warnings at the end.

    An error takes one line, unless it shows lines of code to write.

    Args:
        debug: whether an error keeps its traceback.
        has_limit: whether the user limits the memory, so that a lack of it may be the limit's.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_done = False
        try:
            yield
            is_done = True
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print("detcam: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except (UsageError, BrokenPipeError):
            raise
        except Exception as error:
            is_short_of_memory = not isinstance(error, ERRORS) and _is_out_of_memory(error)
            if debug or not (isinstance(error, ERRORS) or is_short_of_memory):
                raise
            if is_short_of_memory:
                remedy = "allow more (--max-memory)" if has_limit else "end other programs to free some"
                error = RuntimeError(f"memory does not suffice; {remedy} ({str(error) or type(error).__name__})")
            _fail(error)
        finally:
            _print_warnings(caught, is_done)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is a lack of memory, in any library; only those that import torch name it otherwise."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from detcam.utils.memory import is_out_of_memory

    return is_out_of_memory(error)


def _print_warnings(caught: list[warnings.WarningMessage], is_done: bool) -> None:
    """Print each warning once; warnings that differ only in their numbers count as one.

    Args:
        caught: the warnings.
        is_done: whether the command has printed its results, which list the problems of data.
    """
    from detcam.data.issues import DataWarning

    groups: dict[tuple[type[Warning], str], list[str]] = {}
    for warning in caught:
        is_listed = is_done and issubclass(warning.category, DataWarning)
        is_wanted = issubclass(warning.category, UserWarning) and not issubclass(warning.category, DeprecationWarning)
        if is_wanted and not is_listed:
            message = _one_line(str(warning.message))
            groups.setdefault((warning.category, re.sub(r"\d+", "#", message)), []).append(message)
    for messages in groups.values():
        more = f" (and {len(messages) - 1} similar warnings)" if len(messages) > 1 else ""
        print(f"note: {messages[0]}{more}", file=sys.stderr)


def _fail(error: BaseException) -> NoReturn:
    text = str(error)
    lines = [printable(line) for line in text.splitlines()] if CODE.search(text) else [_one_line(text)]
    print("detcam: " + ("\n".join(lines) or type(error).__name__), file=sys.stderr)
    raise typer.Exit(2) from error


def _one_line(text: str) -> str:
    """Return a text in one line, without control characters of names from files."""
    return printable(" ".join(text.split()))


def show_version(wanted: bool) -> None:
    """Print the version and stop, if the option is given."""
    if wanted:
        print(f"detcam {__version__}")
        raise typer.Exit()
