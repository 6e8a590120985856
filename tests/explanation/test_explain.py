"""`detcam.explain`: selection of predictions, drawing, and files that can be read back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN

from detcam import ODAM, HiResCAM
from detcam.adapters import Adapter
from detcam.explanation.explain import Explanation, Explanations, explain
from detcam.explanation.methods_grid import plot_methods
from detcam.targets import BoxTarget, ClassifierOutputTarget, InstanceMaskTarget, MaskTarget, with_quantity
from detcam.visualize.overlay import grid
from tests.drawn import noise
from tests.helpers import tensors

# Selection and targets


def test_explain_equals_the_method_on_the_best_predictions(adapter: Adapter) -> None:
    images = [noise(90, 120), noise(110, 80, 1)]
    found = [one.filter(top_k=3) for one in adapter.predict(images)]
    expected = ODAM(adapter).explain(images, found)
    got = explain(adapter, images, top_k=3, score_threshold=0)
    for one, same, detections in zip(got, expected, found, strict=True):
        assert len(one) == 3
        torch.testing.assert_close(torch.as_tensor(one.heatmaps), torch.as_tensor(same.heatmaps))
        torch.testing.assert_close(one.scores, detections.scores, atol=1e-4, rtol=0)
        assert one.targets == same.targets
        assert one.captions[0] == detections.caption(0)
        assert one.heatmaps.shape[1:] == one.image.shape[:2]


def test_model_runs_once_per_batch(detector: FasterRCNN, adapter: Adapter) -> None:
    passes: list[int] = []
    handle = detector.backbone.body.register_forward_hook(lambda *_: passes.append(1))
    try:
        explain(adapter, [noise(90, 120), noise(90, 120, 1)], top_k=2, score_threshold=0, labels=["dog"])
    finally:
        handle.remove()
    assert len(passes) == 1


def test_predictions_are_selected_by_score_class_and_number(adapter: Adapter) -> None:
    image = noise(90, 120)
    everything = adapter.predict(image)[0]
    dogs = explain(adapter, image, labels=["Dog", 3], score_threshold=0, top_k=1000)[0]
    assert dogs.detections is not None
    wanted = sorted(
        (float(s) for s, label in zip(everything.scores, everything.labels, strict=True) if label in (2, 3)),
        reverse=True,
    )
    assert dogs.detections.scores.tolist() == pytest.approx(wanted, abs=1e-6)
    threshold = wanted[len(wanted) // 2]
    above = explain(adapter, image, labels=["dog", "bus"], score_threshold=threshold, top_k=1000)[0]
    assert above.scores.tolist() == pytest.approx([s for s in wanted if s >= threshold], abs=1e-4)
    assert len(explain(adapter, image, score_threshold=0)[0]) == min(10, len(everything))


def test_default_score_threshold_of_boxes(adapter: Adapter) -> None:
    image = noise(90, 120)
    strong = [score for score in adapter.predict(image)[0].scores.tolist() if score >= 0.3]
    assert len(explain(adapter, image, top_k=1000)[0]) == len(strong)
    nothing = explain(adapter, image, score_threshold=1.0)[0]
    assert nothing.heatmaps.shape == (0, 90, 120)
    assert nothing.plot().size[0] > 0


def test_quantity_and_comparison_change_the_target(adapter: Adapter) -> None:
    image = noise(90, 120)
    plain = explain(adapter, image, top_k=1, score_threshold=0)[0]
    target = plain.targets[0]
    assert isinstance(target, BoxTarget)
    other = next(label for label in adapter.names if label != target.label)
    against = adapter.names[other]
    logit = explain(adapter, image, top_k=1, score_threshold=0, quantity="logit", against=against)[0]
    wanted = BoxTarget(target.box_xyxy, target.label, target.source, "logit", other)
    expected = ODAM(adapter).explain(image, [wanted])[0]
    assert float(expected.heatmaps.max()) == 1
    torch.testing.assert_close(torch.as_tensor(logit.heatmaps), torch.as_tensor(expected.heatmaps))
    assert float(logit.scores[0]) == pytest.approx(float(expected.scores[0]), abs=1e-5)
    assert (
        logit.captions[0]
        == f"logit of {adapter.names[target.label]} rather than {against} {float(logit.scores[0]):.3g}"
    )


def test_mask_quantity_of_a_box() -> None:
    box = BoxTarget((1, 2, 3, 4), 1)
    mask = with_quantity(box, "mask", None)
    assert isinstance(mask, InstanceMaskTarget)
    assert mask.box_xyxy == box.box_xyxy
    assert with_quantity(MaskTarget(1), "score", 2).against == 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="quantity='width' is for boxes"):
        with_quantity(MaskTarget(1), "width", None)


def test_classifier_labels_of_any_rank(classifier: Adapter) -> None:
    image = noise(32, 32)
    logits = classifier.model(classifier.prepare([torch.from_numpy(image).permute(2, 0, 1) / 255]).inputs)[0].detach()
    top = explain(classifier, image)[0]
    assert top.targets[0].category == int(logits.argmax())  # type: ignore[attr-defined]
    assert top.captions[0] == f"{('cat', 'dog', 'bus')[int(logits.argmax())]} {float(logits.softmax(0).max()):.2f}"
    both = explain(classifier, image, labels=["bus", "cat"])[0]
    assert [target.category for target in both.targets] == sorted([2, 0], key=lambda c: -float(logits[c]))  # type: ignore[attr-defined]
    three = explain(classifier, image, top_k=3)[0]
    assert three.scores.tolist() == pytest.approx(sorted(logits.tolist(), reverse=True), abs=1e-5)
    other = explain(classifier, image, labels=["bus"], against="cat")[0]
    assert float(other.scores[0]) == pytest.approx(float(logits[2] - logits[0]), abs=1e-5)
    assert other.captions[0].startswith("bus rather than cat")


def test_user_targets(classifier: Adapter) -> None:
    one = explain(classifier, noise(40, 30), "hirescam", ClassifierOutputTarget(1))[0]
    expected = tensors(HiResCAM(classifier)([noise(40, 30)], [ClassifierOutputTarget(1)]))[0]
    torch.testing.assert_close(torch.as_tensor(one.heatmaps), expected)
    assert (one.detections, one.method, one.captions[0].split()[0]) == (None, "hirescam", "dog")
    with pytest.raises(ValueError, match="top_k, labels: these select the model's predictions"):
        explain(classifier, noise(40, 30), targets=ClassifierOutputTarget(1), top_k=1, labels=[0])


def test_network_input_is_displayed_without_normalization(classifier: Adapter) -> None:
    image = noise(32, 32)
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    inputs = classifier.prepare([pixels]).inputs
    assert np.abs(explain(classifier, inputs)[0].image.astype(int) - image).max() <= 1


def test_wrong_arguments_raise(classifier: Adapter, detector: FasterRCNN) -> None:
    with pytest.raises(ValueError, match="no method is named .nosuchcam."):
        explain(classifier, noise(8, 8), "nosuchcam")
    with pytest.raises(TypeError, match="expected a method's name"):
        explain(classifier, noise(8, 8), nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no class named 'cow'"):
        explain(classifier, noise(8, 8), labels=["cow"])
    with pytest.raises(TypeError, match="the model is an adapter already; pass image_size where it is made"):
        explain(classifier, noise(8, 8), image_size=8)
    with pytest.raises(TypeError, match="ClassificationAdapter. has no option 'imagesize'. Did you mean 'image_size'"):
        explain(classifier, noise(8, 8), imagesize=8)
    for model in (classifier, classifier.model):
        with pytest.raises(TypeError, match=r"a box of yours is a target, for example targets=\[\[.*BoxTarget"):
            explain(model, noise(8, 8), boxes=[(1, 1, 5, 5)])


def test_smoothing_is_passed_to_the_method(classifier: Adapter) -> None:
    image = noise(40, 30)
    smooth = explain(classifier, image, HiResCAM, aug_smooth=True, eigen_smooth=True)[0]
    expected = tensors(HiResCAM(classifier)([image], aug_smooth=True, eigen_smooth=True))[0]
    torch.testing.assert_close(torch.as_tensor(smooth.heatmaps), expected)
    assert smooth.smoothing == ("aug_smooth", "eigen_smooth")


def test_labels_accept_one_name_or_index(classifier: Adapter) -> None:
    image = noise(32, 32)
    for labels in ("bus", 2, ["bus"], torch.tensor([2])):
        assert [target.label for target in explain(classifier, image, labels=labels)[0].targets] == [2]  # type: ignore[attr-defined]


def test_batch_size_is_the_methods_own_by_default(classifier: Adapter) -> None:
    images = [noise(32, 32, seed) for seed in range(5)]
    sizes: list[int] = []

    class Recorded(HiResCAM):
        name = "recorded"

        def __init__(self, model: Adapter) -> None:
            super().__init__(model)
            self.batch_size = 3

    handle = classifier.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        explain(classifier, images, Recorded)
        explain(classifier, images, Recorded, batch_size=4, progress=True)
    finally:
        handle.remove()
    assert sizes == [3, 2, 4, 1]
    with pytest.raises(ValueError, match="batch_size as an int of at least 1; got 1.5"):
        explain(classifier, images, batch_size=1.5)  # type: ignore[arg-type]


def test_iteration_and_indexing_yield_explanations_of_single_targets(adapter: Adapter) -> None:
    explanation = explain(adapter, noise(90, 120), top_k=3, score_threshold=0)[0]
    parts = list(explanation)
    assert [len(part) for part in parts] == [1, 1, 1]
    assert explanation.detections is not None
    for index, part in enumerate(parts):
        np.testing.assert_array_equal(part.heatmaps[0], explanation.heatmaps[index])
        assert part.captions == (explanation.captions[index],)
        assert part.detections is not None
        assert torch.equal(part.detections.boxes_xyxy[0], explanation.detections.boxes_xyxy[index])
        np.testing.assert_array_equal(part.overlay(), explanation.overlay(index))
    assert explanation[1:].captions == explanation.captions[1:]
    for access in (explanation.__getitem__, explanation.overlay, explanation.heatmap, explanation.box_xyxy):
        with pytest.raises(IndexError, match=f"index 99 is out of range: .*{explanation.name} has 3 heatmaps"):
            access(99)
    with pytest.raises(IndexError, match=r"index -2 .* has 1 heatmap$"):
        parts[0].mask(-2)


# Drawing


def test_exif_rotation_is_applied(classifier: Adapter, tmp_path: Path) -> None:
    lying = Image.fromarray(noise(20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    lying.save(tmp_path / "größe.png", exif=exif)
    one = explain(classifier, tmp_path / "größe.png")[0]
    np.testing.assert_array_equal(one.image, np.rot90(noise(20, 40), -1))
    assert (one.heatmaps.shape, one.name, one.path) == ((1, 40, 20), "größe.png", tmp_path / "größe.png")


def test_overlay_changes_where_the_heatmap_is_high(classifier: Adapter) -> None:
    one = explain(classifier, noise(200, 240))[0]
    overlay = one.overlay(0)[:200, :240].astype(int)
    heat = torch.as_tensor(one.heatmaps)[0].numpy()
    change = np.abs(overlay - one.image).sum(2)
    assert change[heat > 0.8].mean() > 100
    assert change[heat == 0].max() == 0
    assert (one.overlay(0, caption=False).shape[0], one.overlay(0).shape[0] > 200) == (200, True)


def test_figure_has_all_panels(classifier: Adapter) -> None:
    one = explain(classifier, noise(200, 240), top_k=2)[0]
    panels = [one.overlay(0, caption=False), one.overlay(1, caption=False)]
    np.testing.assert_array_equal(one.grid(), grid(panels, titles=one.captions, original=one.image))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(one._repr_png_()))), one.grid())
    np.testing.assert_array_equal(np.asarray(one.plot()), one.grid())


def test_overlays_of_one_scale(classifier: Adapter) -> None:
    """With a shared scale the heat of a target is its saliency over the largest saliency of all targets."""
    one = explain(classifier, noise(200, 240), "hirescam", labels=[0, 1])[0]
    largest = [max(float(level[index].max()) for level in one.saliency) for index in range(2)]
    np.testing.assert_allclose(one.magnitudes, largest, rtol=1e-6)
    weaker = int(np.argmin(largest))
    expected = Explanation(**{**vars(one), "maps": one.heatmaps * np.float32(min(largest) / max(largest))})
    np.testing.assert_array_equal(one.overlay(weaker, shared_scale=True), expected.overlay(weaker))
    np.testing.assert_array_equal(one.overlay(1 - weaker, shared_scale=True), one.overlay(1 - weaker))
    assert (one.overlay(weaker, shared_scale=True) != one.overlay(weaker)).any()


def test_methods_beside_each_other(classifier: Adapter) -> None:
    image = noise(200, 240)
    figure = np.asarray(plot_methods(classifier, image, ["gradcam", "hirescam"], labels=[0, 1]))
    rows = [explain(classifier, image, method, labels=[0, 1])[0] for method in ("gradcam", "hirescam")]
    panels = [row.overlay(index, caption=False) for row in rows for index in range(2)]
    titles = [f"{row.method}: {caption}" for row in rows for caption in row.captions]
    np.testing.assert_array_equal(figure, grid(panels, titles=titles, columns=2))
    with pytest.raises(ValueError, match="list of methods"):
        plot_methods(classifier, image, "gradcam")


def test_box_outline(adapter: Adapter) -> None:
    image = noise(200, 240)
    one = explain(adapter, image, targets=[[BoxTarget((60, 50, 120, 100), 1)]])[0]
    bare = Explanation(**{**vars(one), "targets": (ClassifierOutputTarget(1),)})
    differs = (one.overlay(0) != bare.overlay(0)).any(2)[:200, :240]
    assert differs[50, 60:120].all()
    assert differs[50:100, 119].all()
    assert not differs[60:90, 70:110].any()


def test_mask_outline(classifier: Adapter) -> None:
    mask = torch.zeros(200, 240, dtype=torch.bool)
    mask[50:100, 60:120] = True
    one = explain(classifier, noise(200, 240), targets=ClassifierOutputTarget(0))[0]
    region = Explanation(**{**vars(one), "targets": (MaskTarget(0, mask),)})
    assert region.box_xyxy(0) is None
    assert torch.equal(region.mask(0), mask)  # type: ignore[arg-type]
    differs = (region.overlay(0) != one.overlay(0)).any(2)[:200, :240]
    assert differs[50:100, 60:120].any()
    assert not differs[60:90, 70:110].any()
    assert not differs[:40].any()


def test_notebook_display_escapes_names_and_shows_eight(classifier: Adapter) -> None:
    one = explain(classifier, noise(20, 20))[0]
    named = Explanation(**{**vars(one), "name": "<script>.png"})
    page = Explanations([named] * 10)._repr_html_()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;.png: gradcam at features</figcaption>") == 8
    assert page.endswith("<p>and 2 more images</p>")
    assert isinstance(Explanations([one] * 3)[1:], Explanations)
