"""One name, default and meaning for the same argument of the three calls and the three commands."""

from __future__ import annotations

import inspect
from itertools import combinations
from typing import Any

import pytest
import typer

import detcam
from detcam.adapters import embed
from detcam.benchmarking.planted import benchmark_planted
from detcam.cli.app import app
from detcam.models.load import load_model

COMMANDS = ("explain", "audit", "benchmark")
PAIRS = list(combinations(COMMANDS, 2))
OWN = {"model", "images", "annotations", "out", "method", "methods"}
"""Required in one command and optional in another, or with another default."""


def options_of(command: str) -> dict[str, Any]:
    """The options and arguments of a command, by name."""
    group: Any = typer.main.get_command(app)
    return {option.name: option for option in group.commands[command].params}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_commands_share_their_options(one: str, other: str) -> None:
    first, second = (
        {name: (option.opts, option.default, option.help, option.multiple) for name, option in options.items()}
        for options in (options_of(one), options_of(other))
    )
    shared = first.keys() & second.keys() - OWN
    assert {"labels", "score_threshold", "quantity", "device", "batch_size", "target_layer"} <= shared
    assert {name: first[name] for name in shared} == {name: second[name] for name in shared}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_calls_share_their_arguments(one: str, other: str) -> None:
    first, second = (inspect.signature(getattr(detcam, name)).parameters for name in (one, other))
    shared = first.keys() & second.keys() - OWN
    assert {"labels", "score_threshold", "quantity", "device", "batch_size", "target_layers"} <= shared
    kinds = [{name: (call[name].default, call[name].annotation) for name in shared} for call in (first, second)]
    assert kinds[0] == kinds[1] and "progress" in shared


@pytest.mark.parametrize(
    "function",
    [detcam.drise, detcam.Adapter.predict, embed, benchmark_planted, detcam.BaseCAM.explain],
    ids=lambda function: function.__qualname__,
)
def test_other_calls_share_their_arguments(function: Any) -> None:
    """`BaseCAM.explain` takes a wrapper such as tqdm as well."""
    expected, found = (inspect.signature(each).parameters for each in (detcam.explain, function))
    names = found.keys() & {"batch_size", "progress", "labels", "score_threshold", "top_k", "device"}
    assert names and all(found[name].default == expected[name].default for name in names)
    assert all(str(expected[name].annotation) in str(found[name].annotation) for name in names)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_named_like_the_arguments_of_the_call(name: str) -> None:
    arguments = inspect.signature(getattr(detcam, name)).parameters
    options = options_of(name)
    for argument in ("labels", "score_threshold", "quantity", "batch_size"):
        assert options[argument].opts == [f"--{argument.replace('_', '-')}"]
        assert options[argument].default == arguments[argument].default
    assert options["device"].default == inspect.signature(load_model).parameters["device"].default == "auto"
