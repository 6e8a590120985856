"""Registries: names, decorators, entry points."""

from importlib.metadata import EntryPoint

import pytest

from detcam.utils.registry import Registry


def first() -> str:
    return "first"


def other() -> str:
    return "other"


@pytest.fixture
def registry() -> Registry:
    return Registry("method", "detcam.test", {"grad_cam": first, "lazy": "json:dumps"})


def test_names_are_compared_without_case_and_separators(registry: Registry) -> None:
    assert registry["GradCAM"] is registry["grad-cam"] is first and "GRAD_CAM" in registry
    assert list(registry) == ["grad_cam", "lazy"] and len(registry) == 2


def test_a_text_is_imported_lazily(registry: Registry) -> None:
    import json

    assert registry["lazy"] is json.dumps


def test_a_registered_name_is_resolved(registry: Registry) -> None:
    registry.register("mine", other)
    assert registry.find("Mine") is other and list(registry)[-1] == "mine"


def test_a_name_is_registered_once(registry: Registry) -> None:
    with pytest.raises(ValueError, match="a method named 'grad_cam' exists already"):
        registry.register("gradcam", other)
    registry.register("gradcam", first)
    assert registry["grad_cam"] is first and len(registry) == 2


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "a=b"])
def test_invalid_names_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name without spaces"):
        registry.register(name, other)
    with pytest.raises(TypeError, match="expected the name of a method as a str; got int"):
        registry.register(3, other)  # type: ignore[arg-type]


def test_an_unknown_name_suggests_the_closest(registry: Registry) -> None:
    with pytest.raises(ValueError, match="no method is named 'grdcam'; did you mean grad_cam?"):
        registry.find("grdcam")
    with pytest.raises(ValueError, match="no method is named 'xyz'; expected one of grad_cam, lazy"):
        registry.find("xyz")


def test_entry_points_are_loaded_and_broken_ones_skipped(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("dumps", "json:dumps", "detcam.test"),
        EntryPoint("broken", "no_such_module:thing", "detcam.test"),
        EntryPoint("gradcam", "json:loads", "detcam.test"),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == "detcam.test" else [])
    import json

    with pytest.warns(UserWarning, match="the method 'broken' of the entry point 'no_such_module:thing' is skipped"):
        assert list(registry) == ["grad_cam", "lazy", "dumps"]
    assert registry["dumps"] is json.dumps and registry["gradcam"] is first
