"""Open-vocabulary detectors of transformers: the library's result, boxes pinned to query and prompt, words."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from detcam import HiResCAM, explain
from detcam.adapters import adapt
from detcam.adapters.transformers.open_vocabulary import TransformersOpenVocabulary
from detcam.adapters.transformers.prompts import WordHeat
from detcam.detections import Detections
from detcam.explanation.writer import EXPLANATIONS_FILE
from detcam.testing import check_adapter
from detcam.testing.state import ModelState
from detcam.trace import guarded
from tests.adapters.transformers.text import OPEN_VOCABULARY

pytest.importorskip("transformers", reason="transformers is not installed")

PROMPTS = ["a red boat", "buoys"]
IMAGES = [
    torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(1)).float() / 255,
    torch.randint(0, 256, (3, 120, 80), generator=torch.Generator().manual_seed(2)).float() / 255,
]


@functools.cache
def model_and_processor(name: str) -> tuple[Any, Any]:
    model, processor = OPEN_VOCABULARY[name]()
    return model, processor


@functools.cache
def open_adapter(name: str) -> TransformersOpenVocabulary:
    model, processor = model_and_processor(name)
    adapter = adapt(model, processor=processor, prompts=PROMPTS, score_threshold=0.0)
    assert isinstance(adapter, TransformersOpenVocabulary)
    return adapter


def with_label(detections: Detections, label: int) -> Detections:
    """The same queries, asked for another prompt."""
    return replace(detections, labels=torch.full_like(detections.labels, label))


def library_output(name: str, image: Tensor) -> Any:
    model, processor = model_and_processor(name)
    features = processor(images=(image * 255).round().byte(), text=[PROMPTS], return_tensors="pt")
    with torch.no_grad():
        output = model(**features)
    if "dino" in name:  # [CLS] and [SEP] are no part of a prompt
        output.logits[..., [0, features["input_ids"].shape[1] - 1]] = -math.inf
    return output


@pytest.mark.parametrize("name", list(OPEN_VOCABULARY))
def test_result_is_that_of_the_library(name: str) -> None:
    adapter = open_adapter(name)
    _, processor = model_and_processor(name)
    for image in IMAGES:
        size = (image.shape[-2], image.shape[-1])
        output = library_output(name, image)
        (expected,) = processor.post_process_grounded_object_detection(output, threshold=0.0, target_sizes=[size])
        state = ModelState(adapter.model)
        (found,) = adapter.predict(image)
        state.check()
        order = expected["scores"].argsort(descending=True, stable=True)
        boxes, scores = expected["boxes"][order], expected["scores"][order]
        inside = adapter.preparation.geometry(size).clip(boxes)
        keep = (inside[:, 2:] > inside[:, :2]).all(1)
        assert len(found) == int(keep.sum()) > 2
        torch.testing.assert_close(found.scores, scores[keep], atol=1e-4, rtol=0)
        distance = (found.boxes_xyxy[:, None] - boxes[keep][None]).abs().amax(-1)
        close_score = (found.scores[:, None] - scores[keep][None]).abs() < 1e-4
        assert float(torch.where(close_score, distance, torch.inf).amin(1).max()) < 2e-2
        if "owl" in name:
            assert found.labels.tolist() == expected["labels"][order][keep].tolist()
        assert found.names == dict(enumerate(PROMPTS))


@pytest.mark.parametrize("name", list(OPEN_VOCABULARY))
def test_a_box_is_pinned_to_query_and_prompt(name: str) -> None:
    adapter = open_adapter(name)
    (found,) = adapter.predict(IMAGES[0], top_k=1)
    target = adapter.targets_of(found)[0]
    query, label = found.source[0].anchor, int(found.labels[0])
    with guarded(adapter.model, gradients=True):
        batch = adapter.prepare(IMAGES[:1])
        with adapter.trace(batch, gradients=True) as trace:
            outputs = adapter.outputs(adapter.forward(batch), batch)
        ((score,),) = adapter.score(outputs, [[target]])
        traced = trace.gradients(score, retain_graph=False)
        held: list[Tensor] = []
        handle = adapter.target_layers[0].register_forward_hook(
            lambda _, __, out: held.append((out[0] if isinstance(out, tuple) else out).requires_grad_(True))
        )
        raw = adapter.model(pixel_values=batch.inputs, **adapter.encoded.inputs)
        handle.remove()
        row = raw.logits[0, query]
        # "a red boat. buoys.": [CLS] a red boat . buoy s . [SEP]
        plain = (row[[[1, 2, 3, 4], [5, 6, 7]][label]].amax() if "dino" in name else row[label]).sigmoid()
        direct = adapter.reshape_for(batch)(torch.autograd.grad(plain, held)[0])
    assert float(plain.detach()) == pytest.approx(float(found.scores[0]), abs=1e-5)
    for one, other in zip(traced[0], direct, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-3)
    assert max(float(level.abs().max()) for level in direct) > 0
    assert all(min(level.shape[-2:]) >= 2 for level in HiResCAM(adapter).explain(IMAGES[:1], [found])[0].saliency)


@pytest.mark.parametrize("name", list(OPEN_VOCABULARY))
def test_contract(name: str) -> None:
    check_adapter(open_adapter(name), IMAGES)


@pytest.mark.parametrize("name", list(OPEN_VOCABULARY))
@pytest.mark.filterwarnings("error:Converting a tensor with requires_grad")
def test_words_of_a_prompt(name: str) -> None:
    adapter = open_adapter(name)
    (found,) = adapter.predict(IMAGES[0])
    boats = with_label(found[:1], 0)
    state = ModelState(adapter.model)
    (heat,) = adapter.words(IMAGES[0], boats)
    state.check()
    assert (heat.prompt, heat.words) == ("a red boat", ("a", "red", "boat"))
    assert heat.heat.shape == heat.drops.shape == (3,)
    assert bool(torch.isfinite(heat.heat).all()) and float(heat.heat.abs().max()) > 0
    score = float(torch.as_tensor(HiResCAM(adapter).explain(IMAGES[:1], [boats])[0].scores)[0])
    # The check by leaving a word out: the same query without "red".
    model, processor = model_and_processor(name)
    features = processor(images=(IMAGES[0] * 255).round().byte(), text=[["a boat", "buoys"]], return_tensors="pt")
    with torch.no_grad():
        raw = model(**features)
    if "owl" in name:
        without = raw.logits[0, boats.source[0].anchor, 0].sigmoid()
        assert float(heat.drops[1]) == pytest.approx(score - float(without), abs=1e-5)
    else:  # the query is found by its token, wherever it is in the new order
        possible = score - raw.logits[0, :, 1:4].amax(-1).sigmoid()
        assert float((possible - heat.drops[1]).abs().min()) < 1e-5


def test_the_heat_of_a_word_is_the_slope_of_the_score() -> None:
    """Scaling a word's embedding changes the score by the word's heat, to first order."""
    adapter = open_adapter("owlvit")
    (found,) = adapter.predict(IMAGES[0])
    boats = with_label(found[:1], 0)
    (heat,) = adapter.words(IMAGES[0], boats)
    embeddings = adapter.model.owlvit.text_model.embeddings.token_embedding
    position, step = adapter.encoded.words[0][1].tokens[0], 1e-2
    values = []
    for factor in (1 - step, 1 + step):

        def scale(module: Any, inputs: Any, output: Tensor, factor: float = factor) -> Tensor:
            output = output.clone()
            output[0, position] *= factor
            return output

        handle = embeddings.register_forward_hook(scale)
        with torch.no_grad():
            raw = adapter.model(**adapter.encoded.inputs, pixel_values=adapter.prepare(IMAGES[:1]).inputs)
        handle.remove()
        values.append(float(raw.logits[0, boats.source[0].anchor, 0].sigmoid()))
    assert float(heat.heat[1]) == pytest.approx((values[1] - values[0]) / (2 * step), rel=0.02, abs=1e-5)


def test_the_only_word_of_a_prompt_cannot_be_left_out() -> None:
    adapter = open_adapter("owlvit")
    (found,) = adapter.predict(IMAGES[0])
    (heat,) = adapter.words(IMAGES[0], with_label(found[:1], 1))
    assert heat.words == ("buoys",) and math.isnan(float(heat.drops[0]))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "needs prompts="),
        ([], "at least one prompt"),
        (["a boat", " "], "none of them empty"),
        (["a boat. a buoy"], "full stop inside"),
        ([" ".join(["boat"] * 40)], "at most 32 tokens"),
    ],
)
def test_prompts_that_cannot_be_used(prompts: Any, message: str) -> None:
    model, processor = model_and_processor("grounding_dino")
    with pytest.raises(ValueError, match=message):
        adapt(model, processor=processor, prompts=prompts)


def test_a_tokenizer_is_needed() -> None:
    model, processor = model_and_processor("owlvit")
    with pytest.raises(ValueError, match="no tokenizer is saved beside it"):
        adapt(model, processor=processor.image_processor, prompts=PROMPTS)


def test_prompts_change_and_close_with_a_full_stop() -> None:
    adapter = open_adapter("grounding_dino").with_prompts(["Boat.", "a gull"])
    assert adapter.prompts == ("Boat", "a gull") and adapter.names == {0: "Boat", 1: "a gull"}
    assert open_adapter("grounding_dino").prompts == tuple(PROMPTS)
    (found,) = adapter.predict(IMAGES[0], labels="a gull")
    assert set(found.labels.tolist()) <= {1}


def test_explanations_hold_the_words_of_the_prompt(tmp_path: Path) -> None:
    (explanation,) = explain(open_adapter("grounding_dino"), IMAGES[:1], "hirescam", score_threshold=0.0, top_k=2)
    assert explanation.detections is not None
    expected = open_adapter("grounding_dino").words(IMAGES[0], explanation.detections)
    assert [heat.words for heat in explanation.words] == [heat.words for heat in expected]
    torch.testing.assert_close(explanation[1].words[0].heat, expected[1].heat, atol=1e-5, rtol=1e-3)
    explanation.save(tmp_path)
    (entry,) = json.loads((tmp_path / EXPLANATIONS_FILE).read_text())["images"]
    words = entry["targets"][0]["words"]
    assert [word["word"] for word in words] == list(expected[0].words)
    assert words[0]["heat"] == pytest.approx(float(expected[0].heat[0]), abs=1e-5)


def test_overlays_name_the_drop_without_each_word() -> None:
    (explanation,) = explain(open_adapter("grounding_dino"), IMAGES[:1], "hirescam", score_threshold=0.0, top_k=1)
    heat = WordHeat("a red boat", ("a", "red", "boat"), torch.zeros(3), torch.tensor([-0.112, 0.374, 0.339]))
    assert heat.describe() == "drop without the word: a -0.11, red 0.37, boat 0.34"
    assert WordHeat("buoys", ("buoys",), torch.zeros(1), torch.tensor([math.nan])).describe() == ""
    with_words, without = (replace(explanation, words=words).overlay() for words in ((heat,), ()))
    assert with_words.shape[0] > without.shape[0]


def test_prompts_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from detcam.cli.app import app

    model, processor = model_and_processor("owlv2")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    Image.fromarray((IMAGES[0] * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    command = ["explain", str(tmp_path / "a.png"), "--model", f"hf:{tmp_path / 'model'}", "--score-threshold", "0"]
    command += ["--top-k", "1", "--method", "odam", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--prompt", "a red boat", "--prompt", "buoys"])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "out" / EXPLANATIONS_FILE).read_text())["images"]
    (found,) = open_adapter("owlv2").predict(IMAGES[0], top_k=1)
    assert entry["targets"][0]["name"] == found.name(0)
    assert entry["targets"][0]["score"] == pytest.approx(float(found.scores[0]), abs=1e-4)
    without = CliRunner().invoke(app, command)
    assert without.exit_code == 2 and "needs prompts=" in without.output + str(without.stderr)
