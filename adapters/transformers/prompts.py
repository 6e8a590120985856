"""Prompts of open-vocabulary models of transformers: tokens, and the words that they belong to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Word:
    """One word of a prompt.

    Attributes:
        text: the word.
        row: index of the text sequence that contains it.
        tokens: positions of its tokens in that sequence.
    """

    text: str
    row: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class WordHeat:
    """The words of the prompt of one detection, and what each contributes to its score.

    Attributes:
        prompt: the prompt.
        words: its words.
        heat: (W,) float32, gradient times embedding summed over the word's tokens: positive where the word speaks for
            the box.
        drops: (W,) float32, the score of the box minus its score without the word; NaN for the only word of a prompt,
            without which there is no prompt.
    """

    prompt: str
    words: tuple[str, ...]
    heat: Tensor
    drops: Tensor

    def describe(self) -> str:
        """Return a line with the drop of the score without each word; empty for a prompt of one word."""
        pairs = [f"{word} {float(drop):.2f}" for word, drop in zip(self.words, self.drops, strict=True)]
        return f"drop without the word: {', '.join(pairs)}" if len(pairs) > 1 else ""


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as a model reads them.

    Attributes:
        prompts: the prompts.
        inputs: the text arguments of the forward pass of one image, (S, L) each: one sequence for all prompts, or one
            for each.
        words: the words of each prompt.
        spans: the positions of each prompt's tokens in its sequence, its closing full stop included.
    """

    prompts: tuple[str, ...]
    inputs: dict[str, Tensor]
    words: tuple[tuple[Word, ...], ...]
    spans: tuple[tuple[int, ...], ...]


def check_prompts(prompts: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return prompts without surrounding spaces and closing full stops.

    Raises:
        TypeError: not strings.
        ValueError: no prompts, an empty one, or one with a full stop inside, which separates prompts.
    """
    if prompts is None:
        raise ValueError("an open-vocabulary model needs prompts=, such as prompts=['a boat', 'a buoy']")
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not all(isinstance(prompt, str) for prompt in listed):
        raise TypeError(f"expected prompts as a list of str; got {listed!r}")
    cleaned = tuple(prompt.strip().rstrip(".").strip() for prompt in listed)
    if not cleaned or not all(cleaned) or any("." in prompt for prompt in cleaned):
        raise ValueError(f"expected at least one prompt, none of them empty or with a full stop inside; got {listed!r}")
    return cleaned


def encode_joined(tokenizer: Any, prompts: Sequence[str], max_length: int) -> EncodedPrompts:
    """Encode prompts as one sequence, ``a boat. a buoy.``, as Grounding DINO reads them.

    Raises:
        ValueError: the prompts have too many tokens.
    """
    lowered = [prompt.lower() for prompt in prompts]
    text = ". ".join(lowered) + "."
    encoding = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoding.pop("offset_mapping")[0].tolist()
    _check_length(len(offsets), max_length, prompts)
    starts = [0, *itertools.accumulate(len(prompt) + 2 for prompt in lowered)]
    words, spans = [], []
    for prompt, start in zip(lowered, starts, strict=False):
        words.append(_words(prompt, start, offsets, 0))
        spans.append(tuple(_inside(offsets, start, start + len(prompt) + 1)))
    return EncodedPrompts(tuple(prompts), dict(encoding), tuple(words), tuple(spans))


def encode_separately(tokenizer: Any, prompts: Sequence[str], max_length: int) -> EncodedPrompts:
    """Encode each prompt as a sequence of its own, padded to `max_length`, as OWL-ViT and CLIP read them.

    Raises:
        ValueError: a prompt has too many tokens.
    """
    encoding = tokenizer(
        list(prompts), return_tensors="pt", return_offsets_mapping=True, padding="max_length", max_length=max_length
    )
    rows = encoding.pop("offset_mapping").tolist()
    _check_length(len(rows[0]), max_length, prompts)
    words = tuple(
        _words(prompt, 0, offsets, row) for row, (prompt, offsets) in enumerate(zip(prompts, rows, strict=True))
    )
    spans = tuple(tuple(_inside(offsets, 0, len(prompt))) for prompt, offsets in zip(prompts, rows, strict=True))
    return EncodedPrompts(tuple(prompts), dict(encoding), words, spans)


def _check_length(length: int, max_length: int, prompts: Sequence[str]) -> None:
    if length > max_length:
        raise ValueError(f"expected prompts of at most {max_length} tokens; got {length} for {list(prompts)!r:.80}")


def _words(prompt: str, start: int, offsets: Sequence[Sequence[int]], row: int) -> tuple[Word, ...]:
    return tuple(
        Word(match.group(), row, tuple(_inside(offsets, start + match.start(), start + match.end())))
        for match in re.finditer(r"\S+", prompt)
    )


def _inside(offsets: Sequence[Sequence[int]], start: int, stop: int) -> list[int]:
    """The positions of the tokens between two characters; special tokens are empty and belong nowhere."""
    return [index for index, (first, last) in enumerate(offsets) if start <= first < last <= stop]
