"""Which errors are explained."""

from __future__ import annotations

from detcam.auditing.selection import choose_errors

RELEVANT = ([7, 3, 5, 1, 9, 2], [4, 8])


def test_first_of_each_list() -> None:
    assert choose_errors(RELEVANT, (2, 1)) == [7, 3, 4]
    assert choose_errors(RELEVANT, (0, 5)) == [4, 8]


def test_random_samples() -> None:
    three = choose_errors(RELEVANT, (3, 0), "random")
    assert three == choose_errors(RELEVANT, (3, 0), "random")
    assert set(three) < set(RELEVANT[0]) and len(set(three)) == 3
    assert choose_errors(RELEVANT, (5, 0), "random")[:3] == three, "a larger sample contains the smaller one"
    shuffled = ([1, 2, 3, 5, 7, 9], [8, 4])
    assert choose_errors(shuffled, (3, 1), "random") == choose_errors(RELEVANT, (3, 1), "random"), "whatever the order"
    samples = {tuple(choose_errors(RELEVANT, (3, 0), "random", seed)) for seed in range(20)}
    assert len(samples) > 10
    counts = [sum(index in choose_errors(RELEVANT, (3, 0), "random", seed) for seed in range(400)) for index in (7, 2)]
    assert all(150 < count < 250 for count in counts), "each with the same probability"
    assert choose_errors(([], []), (3, 3), "random") == []
