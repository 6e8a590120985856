"""What the registry says of each method is true, and is what the documentation says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from detcam import DRISE, METHODS, Occlusion, adapt
from detcam.adapters.contract import TASKS
from detcam.cli.app import app
from detcam.methods.common.attention_base import AttentionCAM
from detcam.methods.spec import add_setting, parse_method
from detcam.targets import ClassifierOutputTarget
from tests.helpers import TinyCNN

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_readme_has_the_table_of_the_registry() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- detcam methods --markdown -->\n")
    table, _, _ = rest.partition("\n<!-- end -->")
    printed = CliRunner().invoke(app, ["methods", "--markdown"]).stdout
    assert f"{table}\n" == printed, "put what `detcam methods --markdown` prints between the marks"


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_a_summary(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.tasks <= set(TASKS) and method.tasks
    for text in (method.paper, method.cost, method.use):
        assert len(text) > 8 and "|" not in text and text == text.strip()


class Count:
    """How often a network ran, and how often something was differentiated."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0
        self.inside = 0

    @contextmanager
    def watch(self, model: TinyCNN, monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
        grad = torch.autograd.grad

        def counted(*args: object, **kwargs: object) -> object:
            # a mode of torch functions sends the call through here once more
            self.backwards += not self.inside
            self.inside += 1
            try:
                return grad(*args, **kwargs)  # type: ignore[arg-type]
            finally:
                self.inside -= 1

        def ran(*args: object) -> None:
            self.forwards += 1

        handle = model.register_forward_pre_hook(ran)
        with monkeypatch.context() as patched:
            patched.setattr(torch.autograd, "grad", counted)
            yield self
        handle.remove()


def passes(name: str, targets: int, monkeypatch: pytest.MonkeyPatch) -> Count:
    model = TinyCNN()
    cam = METHODS[name](adapt(model, target_layers=["relu2"]))
    images: Tensor = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with Count().watch(model, monkeypatch) as count:
        cam(images, [[ClassifierOutputTarget(index) for index in range(targets)]])
    return count


COUNTED = [
    name
    for name, method in METHODS.items()
    if "classification" in method.tasks
    and not issubclass(method, AttentionCAM)
    and re.fullmatch(r"\d forwards?(, .*backwards? per target)?", method.cost)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COUNTED)
def test_methods_have_their_stated_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = passes(name, 1, monkeypatch), passes(name, 3, monkeypatch)
    cost = METHODS[name].cost
    a_target = sum(int(number) for number in re.findall(r"(\d+) (?:\w+ )?backward", cost))
    assert one.forwards == three.forwards == int(cost[0]), cost
    assert (one.backwards, three.backwards) == (a_target, 3 * a_target), cost


def test_passes_of_most_methods_are_counted() -> None:
    assert len(COUNTED) >= 20


def test_a_method_with_settings_in_text() -> None:
    adapter = adapt(TinyCNN())
    made = parse_method("occlusion: grid=8, window=4, refine=none")(adapter)
    assert isinstance(made, Occlusion) and (made.grid, made.window, made.refine) == (8, 4, None)
    assert parse_method("d-rise") is DRISE
    found = parse_method("drise:passes=auto,probability=0.25")
    assert isinstance(found, partial) and found.keywords == {"passes": "auto", "probability": 0.25}
    assert add_setting("drise", "passes", None) == "drise"
    assert add_setting("drise", "passes", "9") == "drise:passes=9"
    assert add_setting("drise:grid=4", "passes", "9") == "drise:grid=4,passes=9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("occlusion:size=3", "no setting 'size'; it has grid, window, refine"),
        ("hirescam:grid=3", "hirescam has no setting 'grid'; it has none"),
        ("occlusion:grid", "name=value"),
        ("nothing:grid=3", "no method is named .nothing.; expected one of gradcam"),
    ],
)
def test_invalid_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)
