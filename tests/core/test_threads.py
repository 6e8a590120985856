"""Several threads with one model: each gets the maps of a single thread, and the model is restored."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam.adapters import adapt
from detcam.explanation.explain import make_cam
from detcam.metrics.sanity import randomization
from detcam.trace import guarded
from detcam.utils import model_lock as module
from detcam.utils.model_lock import exclusive
from tests.helpers import Snapshot, TinyCNN
from tests.zoo import Example, example

METHODS = [
    "rise:passes=16",
    "occlusion:grid=4",
    "scorecam:top_channels=4",
    "probecam",
    "reachcam",
    "ablationcam",
    "fullgrad",
    "gradcam",
    "layercam",
    "odam",
    "guidedbackprop",
    "refinecam",
    "sess:scales=2",
]
THREADS = 2
WAIT = 0.2
"""Seconds after which a thread that still waits is held to be waiting for a lock."""


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Let threads take turns so often that they meet."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def case() -> Example:
    return example("faster_rcnn")


def side_by_side(work: Callable[[int], Any], count: int) -> list[Any]:
    """Return the result, or the exception, of `work` for each number, computed by threads that start together."""
    actual: list[Any] = [None] * count
    start = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        start.wait()
        for number in range(thread, count, THREADS):
            try:
                actual[number] = work(number)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
                actual[number] = error

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return actual


def make_images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, 96, 128, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module", params=METHODS)
def alone(request: pytest.FixtureRequest, case: Example) -> tuple[str, list[Tensor], list[Any], list[Tensor]]:
    """A method's name, images, the best target of each, and their maps as one thread computes them."""
    given = make_images(4)
    targets = [case.adapter.targets_of(found)[:1] for found in case.adapter.predict(given)]
    results = make_cam(case.adapter, request.param).explain(given, targets)
    return request.param, given, targets, [torch.as_tensor(result.heatmaps) for result in results]


@pytest.mark.usefixtures("many_switches")
@pytest.mark.parametrize("shared", ["model", "adapter", "method"])
def test_threads_get_the_results_of_one_thread(case: Example, alone: Any, shared: str) -> None:
    name, given, targets, expected = alone
    cams = [make_cam(case.adapter if shared == "adapter" else adapt(case.model), name) for _ in range(THREADS)]
    cams = [cams[0]] * THREADS if shared == "method" else cams
    before = Snapshot(case.model)
    actual = side_by_side(
        lambda i: torch.as_tensor(cams[i % THREADS].explain([given[i]], [targets[i]])[0].heatmaps), len(given)
    )
    for maps, wanted in zip(actual, expected, strict=True):
        assert isinstance(maps, Tensor), repr(maps)
        assert len(maps) == 1
        assert torch.allclose(maps, wanted, atol=1e-5)
    before.check()


@pytest.mark.usefixtures("many_switches")
def test_a_sanity_check_beside_a_method(case: Example) -> None:
    """Randomized weights are restored before another thread uses the model."""
    cam = make_cam(case.adapter, "gradcam")
    (image,) = make_images(1)
    first = cam.explain([image])[0]
    targets = list(first.targets[:1])

    def work(number: int) -> Any:
        if number % THREADS:
            return randomization(cam, image, targets, steps=2).ssim
        return torch.as_tensor(cam.explain([image], [targets])[0].heatmaps)

    actual = side_by_side(work, 8)
    assert all(torch.equal(maps, torch.as_tensor(first.heatmaps)[:1]) for maps in actual[::2])
    assert all(torch.equal(similarity, actual[1]) for similarity in actual[1::2])


def waits_for(held: nn.Module, other: nn.Module) -> bool:
    """Return whether another thread has to wait for the lock of `other` while this one holds that of `held`."""
    entered = threading.Event()

    def enter() -> None:
        with guarded(other, gradients=False):
            entered.set()

    thread = threading.Thread(target=enter)
    with guarded(held, gradients=True):
        thread.start()
        waited = not entered.wait(WAIT)
    thread.join()
    assert entered.is_set(), "it goes on once it may"
    return waited


def test_models_wait_only_for_shared_modules() -> None:
    model, other = TinyCNN(), TinyCNN()
    assert waits_for(model, model) and not waits_for(model, other)
    wrapper = nn.Sequential(model, nn.Identity()).eval()
    assert waits_for(model, wrapper) and waits_for(wrapper, model) and not waits_for(wrapper, other)
    both = nn.ModuleList([other, model]).eval()
    assert waits_for(both, model) and waits_for(both, other) and waits_for(other, both) and waits_for(wrapper, both)
    assert not waits_for(model, other), "they keep a lock each"
    head = nn.Sequential(other.head).eval()
    assert waits_for(other, head) and not waits_for(model, head)


def test_the_lock_is_reentrant() -> None:
    model = TinyCNN()
    before = Snapshot(model)
    with exclusive(model), guarded(model, gradients=False), guarded(model, gradients=True):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    before.check()
    assert not waits_for(TinyCNN(), model)


def test_an_error_releases_the_lock() -> None:
    model = TinyCNN()
    with pytest.raises(KeyError), guarded(model, gradients=False):
        raise KeyError
    assert waits_for(model, model), "and out again"


def test_copies_and_pickles_have_no_locks() -> None:
    model = TinyCNN()
    with guarded(model, gradients=False):
        twin, read = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert vars(twin).keys() == vars(TinyCNN()).keys() == vars(read).keys()
    assert not waits_for(model, twin) and not waits_for(model, read)


def test_a_lock_lives_as_long_as_its_model() -> None:
    gc.collect()
    before = len(module.lock_table.locks)
    model = TinyCNN()
    with guarded(model, gradients=False):
        pass
    assert len(module.lock_table.locks) == before + len(list(model.modules()))
    del model
    gc.collect()
    assert len(module.lock_table.locks) <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_of_its_parent() -> None:
    model = TinyCNN()
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(model):
            inside.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    child = os.fork()
    if not child:
        signal.alarm(5)  # ends it where it waits
        with exclusive(model):
            os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0
