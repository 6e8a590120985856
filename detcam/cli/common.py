"""What the commands share: the model, errors in one line, warnings at the end, printable text."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import typer

ERRORS = (TypeError, ValueError, RuntimeError, OSError, ImportError)


def load_adapter(
    model: str,
    weights: str | None,
    num_classes: int | None,
    names: str | None,
    image_size: str | None,
    device: str,
    trust_checkpoint: bool,
    **options: Any,
) -> Any:
    """The adapter of a model that the command line names; options of `detcam.cli.options`."""
    from detcam.models.load import load_model, read_names

    return load_model(
        model,
        weights=weights,
        num_classes=num_classes,
        device=device,
        trust_checkpoint=trust_checkpoint,
        names=None if names is None else read_names(names),
        image_size=None if image_size is None else parse_size(image_size),
        **options,
    )


@contextlib.contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Tell an error in one line on stderr and exit with 2, Ctrl-C with 130. Warnings are told at the end, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print("detcam: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except ERRORS as error:
            if debug:
                raise
            _fail(error)
        finally:
            tell_warnings(caught)


def tell_warnings(caught: list[warnings.WarningMessage]) -> None:
    """Each warning once; those that differ in their numbers alone count as one, told for the first batch."""
    kinds: dict[tuple[type[Warning], str], list[str]] = {}
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            message = _one_line(str(warning.message))
            kinds.setdefault((warning.category, re.sub(r"\d+", "#", message)), []).append(message)
    for messages in kinds.values():
        more = f" (and the like for {len(messages) - 1} more batches)" if len(messages) > 1 else ""
        print(f"note: {messages[0]}{more}", file=sys.stderr)


def _fail(error: BaseException) -> NoReturn:
    print(f"detcam: {_one_line(str(error)) or type(error).__name__}", file=sys.stderr)
    raise typer.Exit(2) from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def parse_size(text: str) -> int | tuple[int, int]:
    """A size from ``N`` or ``HxW``.

    Raises:
        ValueError: not one or two positive whole numbers.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"expected --image-size as a number of pixels, or height x width as in 256x320; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def shorten(text: str, width: int) -> str:
    """The text, its middle left out where it is too wide."""
    if len(text) <= width:
        return text
    return f"{text[: width // 2 - 1]}…{text[len(text) - (width - width // 2) :]}"


def printable(text: str) -> str:
    """Without control characters, which names of files and classes could smuggle into a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
