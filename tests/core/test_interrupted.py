"""Ctrl-C at any moment, also while hooks are put on or taken off, leaves the model as it was."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import pytest
import torch
from torch import nn

from detcam.utils.hooks import active_hooks, complete
from tests import zoo
from tests.helpers import Snapshot, TinyCNN

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = ("odam", "ablationcam", "probecam", "fullgrad", "guidedbackprop", "drise", "reachcam", "scorecam")


@pytest.fixture
def image() -> Any:
    return zoo.example("own_detector").images[0]


@pytest.mark.parametrize("where", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("method", METHODS)
def test_no_hook_stays_where_its_registration_is_interrupted(
    method: str, where: str, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = zoo.example("own_detector")
    cam, before, original = zoo.quick(method, example.adapter), Snapshot(example.model), getattr(nn.Module, where)
    interrupted = False
    for nth in (1, 2, 5, 12):
        calls = 0

        def register(self: nn.Module, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            handle = original(self, *arguments, **options)
            calls += 1
            if calls == nth:  # noqa: B023 - the hook is on the module, and its handle is lost
                raise KeyboardInterrupt
            return handle

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, where, register)
            try:
                cam([image])
            except KeyboardInterrupt:
                interrupted = True
        before.check()
    assert interrupted or where == "register_forward_pre_hook" or method in ("drise", "guidedbackprop")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of POSIX")
@pytest.mark.parametrize("method", ["ablationcam", "probecam"])
def test_an_interruption_at_any_time_leaves_the_model_as_it_was(method: str, image: Any) -> None:
    example = zoo.example("own_detector")
    cam, before, count = zoo.quick(method, example.adapter), Snapshot(example.model), 0

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for trial in range(25):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0011 * trial)
                cam([image])
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                count += 1
            before.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert count


@pytest.mark.parametrize("nth", [1, 2])
def test_no_hook_stays_where_the_call_of_its_removal_is_interrupted(
    nth: int, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = zoo.example("own_detector")
    cam, before, calls = zoo.quick("probecam", example.adapter), Snapshot(example.model), 0
    leave = contextlib._GeneratorContextManager.__exit__

    def interrupted_leave(self: Any, *exc_info: Any) -> Any:
        nonlocal calls
        if self.gen.gi_code is active_hooks.__wrapped__.__code__:  # type: ignore[attr-defined]
            calls += 1
            if calls == nth:  # the generator, which removes the hooks, does not run
                raise KeyboardInterrupt
        return leave(self, *exc_info)

    monkeypatch.setattr(contextlib._GeneratorContextManager, "__exit__", interrupted_leave)
    with pytest.raises(KeyboardInterrupt) as raised:
        cam([image])
    before.check()
    assert raised.traceback  # which keeps the generator alive


def test_hooks_are_removed_where_their_removal_is_interrupted() -> None:
    model = TinyCNN()

    class Interrupting(dict[int, Any]):
        """Interrupts the first removal."""

        removals = 0

        def pop(self, *arguments: Any) -> Any:
            self.removals += 1
            if self.removals == 1:
                raise KeyboardInterrupt
            return super().pop(*arguments)

    model.conv1._forward_hooks = Interrupting()  # type: ignore[assignment]

    def hook(*arguments: Any) -> None: ...

    with pytest.raises(KeyboardInterrupt), active_hooks([(model.conv1, hook), (model.conv2, hook)]):
        model(torch.rand(1, 3, 8, 8))
    assert not model.conv1._forward_hooks and not model.conv2._forward_hooks


def test_a_hook_of_somebody_else_stays() -> None:
    model = TinyCNN()
    seen: list[str] = []
    handle = model.conv1.register_forward_hook(lambda *arguments: seen.append("own"))
    with active_hooks([(model.conv1, lambda *arguments: seen.append("ours"))], before=[(model.conv1, print)]):
        assert len(model.conv1._forward_hooks) == 2
    model(torch.rand(1, 3, 8, 8))
    assert seen == ["own"]
    handle.remove()


def test_what_restores_is_run_to_its_end() -> None:
    runs: list[int] = []

    def restore() -> None:
        runs.append(len(runs))
        if len(runs) < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(restore)
    assert runs == [0, 1, 2]
    complete(restore)


def test_a_model_made_under_inference_mode_keeps_its_flags() -> None:
    from detcam import GradCAM

    with torch.inference_mode():
        model = TinyCNN()
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain = TinyCNN()
    images = torch.rand(1, 3, 32, 32)
    maps = [GradCAM(each)(images) for each in (model, plain)]
    assert (maps[0] == maps[1]).all()
    assert all(parameter.requires_grad and parameter.is_inference() for parameter in model.parameters())
