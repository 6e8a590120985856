"""Remedies of a made-up audit: the action of each group, and its files."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detcam
from detcam.auditing.case import AuditCase, CaseMaps, ErrorGroup, GroundTruthObject, Trial
from detcam.auditing.errors import ERROR_TYPES
from detcam.auditing.grouping.actions import ACTIONS, case_action, choose_action
from detcam.auditing.remedies import contact_sheets, remedies
from detcam.auditing.remedies.contact_sheets import ObjectIndex, crop
from detcam.auditing.remedies.counterfactuals import fill_pixels, grown, make_counterfactuals, paste_region
from detcam.auditing.remedies.relabel import relabel_order
from detcam.auditing.report import ReportSummary, ReportWriter
from detcam.auditing.report.report_data import ReportData
from detcam.cli.app import app
from detcam.data.annotations import Annotations
from detcam.data.ground_truth import GroundTruth
from detcam.perturbation import EvenLightFill
from detcam.runs import lock_folder
from tests.auditing.comparison.records import make_case, missed_object

SIZE = 100
OBJECT = (40.0, 40.0, 60.0, 60.0)
HOSTILE = "a <b> & \x01 \u4e2d"


def pixels_of(image: int) -> np.ndarray:
    """Gray ground, an object in its own color, and a red mark at the left of the false positive's box."""
    pixels = np.full((SIZE, SIZE, 3), 90 + 5 * image, np.uint8)
    pixels[40:60, 40:60] = (20, 40 * image, 200)
    pixels[15:19, 2:6] = (250, 30, 30)
    return pixels


def mark() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[15:19, 2:6] = True
    return mask


def truth_of(image: int) -> GroundTruth:
    box = torch.tensor([OBJECT])
    return GroundTruth(
        image_id=image,
        file_name=f"{image}.png",
        path=Path(f"{image}.png"),
        image_size_hw=(SIZE, SIZE),
        boxes_xyxy=box,
        boxes_xywh=np.array([[40.0, 40, 20, 20]]),
        labels=torch.tensor([1]),
        category_ids=torch.tensor([7]),
        crowd=torch.tensor([False]),
        area=torch.tensor([400.0]),
        ids=torch.tensor([image + 50]),
        segmentations=(None,),
        names={1: "boat", 2: HOSTILE},
    )


def unannotated(image: int, index: int = 0, **values: Any) -> AuditCase:
    defaults = {"background_type": "missing annotation", "verdict": "not confirmed", "typicality": 0.5}
    defaults["evidence_kind"] = "unlabeled object"
    return make_case(image, index, **{**defaults, **values})


def mislabeled(image: int) -> AuditCase:
    """The annotated object, detected with another class because of what it is."""
    truth = GroundTruthObject(OBJECT, 1, "boat", 1.0, image + 50)
    values = {"evidence_kind": "object itself", "name": HOSTILE, "label": 2, "box_xyxy": OBJECT}
    return make_case(image, 8, type="classification", ground_truth=truth, **values)


def localized(image: int) -> AuditCase:
    """The annotated object with a box that is too wide."""
    truth = GroundTruthObject(OBJECT, 1, "boat", 0.4, image + 50)
    evidence = {"evidence_location": "ground truth", "evidence_shares": {"ground truth": 1.0}}
    return make_case(image, 9, type="localization", ground_truth=truth, box_xyxy=(40.0, 40.0, 90.0, 60.0), **evidence)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups: context with a mark, missing annotations. Single cases: a look-alike, a missed object, a wrong box."""
    out = tmp_path_factory.mktemp("report")
    writer = ReportWriter(out)
    groups = [
        [make_case(0), make_case(1)],
        [
            unannotated(2, 1, delta_ap=0.002),
            unannotated(2, 2, delta_ap=0.02, box_xyxy=(70.0, 70.0, 90.0, 95.0)),
            unannotated(3, 1, delta_ap=0.03, name=HOSTILE, label=2),
        ],
        [make_case(4, background_type="look-alike", evidence_location="predicted box", evidence_fraction=0.03)],
        [missed_object(5)],
        [localized(1)],
        [mislabeled(2)],
    ]
    numbers = [number if len(group) > 1 else None for number, group in enumerate(groups)]
    cases = [replace(case, group=number) for number, group in zip(numbers, groups, strict=True) for case in group]
    heat = np.where(mark(), 255, 0).astype(np.uint8)
    for case in cases:
        writer.image(case.image_id, case.file_name, pixels_of(int(case.image_id)), truth_of(int(case.image_id)))
        writer.case(case, pixels_of(int(case.image_id)), CaseMaps(heat, mark(), mark(), None))
    summary = ReportSummary(
        model="model",
        adapter="two-stage",
        annotations="made-up.json",
        image_count=6,
        object_count=6,
        iou_threshold=0.5,
        average_precision=0.5,
        false_positive_count=5,
        false_positive_delta_ap=0.1,
        error_counts=dict.fromkeys(ERROR_TYPES, 0),
        delta_ap_by_type=dict.fromkeys(ERROR_TYPES, 0.0),
        classes=(),
        category_ids={1: 7, 2: 9},
        groups=tuple(
            ErrorGroup(number, group[0].type, 1, "boat", None, tuple(case.id for case in group), 0.01, 1, "a group")
            for number, group in enumerate(groups)
            if len(group) > 1
        ),
        cases=tuple(cases),
    )
    writer.finish(summary)
    return out


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for image in range(6):
        Image.fromarray(pixels_of(image)).save(folder / f"{image}.png")
    return folder


@pytest.fixture(scope="module")
def repaired(report: Path, originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repair") / "out"
    done = CliRunner().invoke(app, ["repair", str(report), "--out", str(out), "--images", str(originals)])
    assert done.exit_code == 0, done.stderr
    assert "counterfactual pairs" in done.stdout and "README.md" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines()[:-1]), "the table is legible in a file"
    return out


def test_actions() -> None:
    truth = GroundTruthObject(OBJECT, 2, "barge", 0.9, 1)
    wrong_class = make_case(0, type="classification", ground_truth=truth, box_xyxy=OBJECT)
    inside = {"evidence_location": "predicted box", "evidence_shares": {"predicted box": 1.0}}
    assert case_action(make_case(0)) == "counterfactual pairs"
    assert case_action(unannotated(0)) == "relabel" and case_action(missed_object(0)) == "add images"
    assert case_action(replace(wrong_class, **inside, evidence_fraction=0.005)) == "counterfactual pairs", "a mark"
    assert case_action(replace(wrong_class, **inside, evidence_fraction=0.03)) == "hard negatives"
    assert case_action(
        replace(wrong_class, evidence_shares={"ring": 0.6, "predicted box": 0.4}, evidence_fraction=0.03)
    ) == ("counterfactual pairs")
    unknown = replace(wrong_class, evidence_kind="object itself")
    for evidence in (inside, {"evidence_shares": {"ring": 0.6, "predicted box": 0.4}}):
        assert case_action(replace(unknown, **evidence, evidence_fraction=0.005)) == "review classes", (
            "may be the label"
        )
    assert case_action(replace(make_case(0), verdict="not confirmed", background_type=None)) == "look at the cases"
    for kind in ("localization", "duplicate"):
        right_class = replace(wrong_class, type=kind)
        assert case_action(replace(right_class, **inside, evidence_fraction=0.005)) == "review boxes", "its own part"
        assert case_action(replace(right_class, **inside, verdict="not confirmed")) == "review boxes"
        assert case_action(replace(right_class, evidence_shares={"ring": 1.0})) == "counterfactual pairs"
    assert choose_action([make_case(0), make_case(1), unannotated(2)]) == "counterfactual pairs"


def test_each_group_has_an_action_and_its_files(repaired: Path) -> None:
    data = json.loads((repaired / "repair.json").read_text())
    assert [remedy["action"] for remedy in data["remedies"]] == [ACTIONS[index] for index in (1, 0, 2, 5, 3, 4)]
    assert [remedy["group"] for remedy in data["remedies"]] == [0, 1, None, None, None, None], "single cases too"
    assert [remedy["cause"] for remedy in data["remedies"]][:2] == [
        "surroundings: boat, background",
        "unlabeled object: boat, background",
    ]
    assert data["remedies"][3]["suppressors"] == {"suppressed: a region (scene)": 1}
    counts = {"relabel": 3, "counterfactual pairs": 10, "hard negatives": 1, "review boxes": 1}
    assert data["files"] == {**counts, "review classes": 1, "add images": 1}
    boxes = json.loads((repaired / "boxes" / "coco.json").read_text())
    assert [entry["bbox"] for entry in boxes["annotations"]] == [[40, 40, 20, 20], [40, 40, 50, 20]]
    assert [entry["attributes"]["proposal"] for entry in boxes["annotations"]] == [False, True]
    classes = json.loads((repaired / "classes" / "coco.json").read_text())
    assert [(entry["category_id"], entry["bbox"]) for entry in classes["annotations"]] == [
        (7, [40, 40, 20, 20]),
        (9, [40, 40, 20, 20]),
    ]
    assert classes["info"]["description"].startswith("Classes that differ")
    readme = (repaired / "README.md").read_text()
    assert readme.count("* Single case") == 4
    assert "**relabel**" in readme and "audit on other images" in readme


def test_counterfactual_pairs(report: Path, originals: Path) -> None:
    data = ReportData.load(report, originals)
    cases = [data.cases["image-0-detection-0"], data.cases["image-1-detection-0"]]
    made = list(make_counterfactuals(data, cases, transplants=3))
    kinds = [item.kind for item in made]
    assert kinds == (["original", "filled"] + ["transplanted"] * 3) * 2
    original, filled, *transplants = made[:5]
    assert (original.pixels == pixels_of(0)).all()
    assert np.abs(filled.pixels[mark()].astype(int) - 90).max() <= 3, "the mark has the color of the ground"
    unchanged = ~grown(mark())
    assert (filled.pixels[unchanged] == original.pixels[unchanged]).all()
    for item in transplants:
        before = pixels_of(int(item.image.image_id)).astype(int)
        assert item.image.image_id != 0 and item.case_ids == ("image-0-detection-0",)
        rows, columns = np.nonzero((item.pixels[..., 0] - before[..., 0]) > 60)
        assert len(rows) >= 8 and not ((rows >= 38) & (rows < 62) & (columns >= 38) & (columns < 62)).any()
        assert [each.box_xyxy for each in item.objects] == [OBJECT], "the labels are kept"
    assert not [item for item in make_counterfactuals(data, cases, transplants=0) if item.kind == "transplanted"]
    again = list(make_counterfactuals(data, cases, transplants=3))
    assert all((one.pixels == other.pixels).all() for one, other in zip(made, again, strict=True))


def test_errors_on_objects_move_with_objects_of_the_class(report: Path, originals: Path) -> None:
    """The evidence is pasted at the same position relative to another object of the true class."""
    data = ReportData.load(report, originals)
    truth = GroundTruthObject((38.0, 43.0, 58.0, 63.0), 1, "boat", 0.9, 1)
    data.cases["image-0-detection-0"] = case = make_case(0, type="classification", ground_truth=truth)
    transplants = [item for item in make_counterfactuals(data, [case], 2) if item.kind == "transplanted"]
    assert len(transplants) == 2
    for item in transplants:
        before = pixels_of(int(item.image.image_id)).astype(int)
        rows, columns = np.nonzero(item.pixels[..., 0].astype(int) - before[..., 0] > 60)
        # The mark is at (2, 15); objects of the other images lie 2 to the right and 3 up. The old mark is below.
        assert set(rows.tolist()) <= set(range(11, 17)) and set(columns.tolist()) <= set(range(3, 9))


def test_objects_that_the_evidence_covers_are_not_filled(report: Path, originals: Path) -> None:
    data = ReportData.load(report, originals)
    case = data.cases["image-0-detection-0"]
    path = report / data.files[case.id]["evidence"]  # type: ignore[operator]
    before = path.read_bytes()
    covered = np.zeros((SIZE, SIZE), np.uint8)
    covered[38:62, 38:62] = 255
    try:
        Image.fromarray(covered > 0).save(path)
        assert "filled" not in [item.kind for item in make_counterfactuals(data, [case], 0)]
    finally:
        path.write_bytes(before)


def test_light_is_evened_and_its_details_stay(report: Path, originals: Path) -> None:
    data = ReportData.load(report, originals)
    case = data.cases["image-0-detection-0"]
    (filled,) = [each.pixels for each in make_counterfactuals(data, [case], 0) if each.kind == "filled"]
    lit = replace(case, verdict="weak", trials=(Trial("without evidence", "even light", 0.1, "class flipped"),))
    (evened,) = [each.pixels for each in make_counterfactuals(data, [lit], 0) if each.kind == "filled"]
    mask = data.evidence(case)
    assert mask is not None and np.array_equal(evened, fill_pixels(pixels_of(0), grown(mask), EvenLightFill()))
    assert not np.array_equal(evened, filled)


def test_an_absent_context_is_not_filled(report: Path, originals: Path) -> None:
    """Its evidence is what the surroundings lack."""
    data = ReportData.load(report, originals)
    data.cases["image-5-detection-0"] = case = missed_object(
        5, trials=(Trial("transplant", "transplant", 0.9, "appeared"),)
    )
    assert case.needs_context and [item.kind for item in make_counterfactuals(data, [case], 3)] == ["original"]


def test_evidence_is_pasted_as_it_is_and_its_faint_surroundings_by_their_difference() -> None:
    source, target = pixels_of(0), np.full((SIZE, SIZE, 3), 60, np.uint8)
    source[15:19, 6:12] += 10
    region = grown(mark())
    region[13:21, 6:14] = True
    pasted = paste_region(source, region, target, (20, 10)).astype(int)
    assert np.abs(pasted[26:28, 23:25] - [250, 30, 30]).max() <= 4
    assert np.abs(pasted[26:28, 28:31] - 70).max() <= 3, "10 brighter than the ground, as in the source"
    assert (pasted[:20] == 60).all() and (fill_pixels(target, mark()) == 60).all()


def test_evidence_stays_near_its_height(report: Path, originals: Path) -> None:
    """In a view from the side, sky and foreground are not where the error occurs."""
    data = ReportData.load(report, originals)
    made = make_counterfactuals(data, [data.cases["image-0-detection-0"]], transplants=5)
    transplanted = [item for item in made if item.kind == "transplanted"]
    assert transplanted
    for item in transplanted:
        change = np.abs(item.pixels.astype(int) - pixels_of(int(item.image.image_id))).max(-1)
        rows, _ = np.nonzero(change > 60)
        assert 15 - SIZE / 10 <= rows.min() and rows.max() < 19 + SIZE / 10


def test_training_sets_load_as_coco_and_as_yolo(repaired: Path) -> None:
    folder = repaired / "counterfactual"
    coco = Annotations.load(folder / "annotations.json", folder / "images")
    yolo = Annotations.load(folder / "data.yaml")
    assert len(coco) == len(yolo) == 10 and not coco.issues and not yolo.issues
    assert set(yolo.names.values()) == {"boat", HOSTILE}
    for image in (*coco, *yolo):
        np.testing.assert_allclose(image.boxes_xyxy.numpy(), [OBJECT], atol=0.01)
        assert image.name(0) == "boat"
    assert set(coco.categories) == {7, 9}
    sides = [Image.open(repaired / "hard-negatives" / "beside" / "image-4-detection-0.jpg").size]
    assert sides[0][0] > 4 * 168, "four true objects beside the error"
    missed = json.loads((repaired / "missed" / "missed.json").read_text())
    assert missed[0]["failure_stage"] == "suppressed" and missed[0]["annotation_id"] == 1
    assert len(list((repaired / "missed" / "images").iterdir())) == 2, "with and without the region"


def test_nearest_objects_are_the_most_similar(report: Path, originals: Path) -> None:
    data = ReportData.load(report, originals)
    nearest = ObjectIndex.of_class(data, "boat").nearest(crop(pixels_of(3), OBJECT, 0.0), 2)
    assert nearest[0].image.image_id == 3 and nearest[0].similarity == pytest.approx(1, abs=1e-3)
    assert not ObjectIndex.of_class(data, "barge").nearest(pixels_of(0))


def test_no_more_objects_are_compared_than_the_limit(
    report: Path, originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheets, "MAX_OBJECTS", 2)
    data = ReportData.load(report, originals)
    image = data.images[3]
    vars(data)["images"] = {3: replace(image, objects=image.objects * 5), 0: data.images[0]}
    assert len(ObjectIndex.of_class(data, "boat").entries) == 2


def test_the_queue_is_sorted_by_gain(repaired: Path) -> None:
    coco = json.loads((repaired / "relabel" / "coco.json").read_text())
    proposals = [entry for entry in coco["annotations"] if "score" in entry]
    assert [entry["attributes"]["case"] for entry in proposals] == [
        *("image-3-detection-1", "image-2-detection-2", "image-2-detection-1"),
    ]
    assert [entry["attributes"]["rank"] for entry in proposals] == [1, 2, 3]
    assert [entry["category_id"] for entry in proposals] == [9, 7, 7]
    assert [image["file_name"] for image in coco["images"]] == ["3.png", "2.png"]
    assert len(coco["annotations"]) == 5, "with the annotated objects"
    first, second = unannotated(0, typicality=0.9), unannotated(1, typicality=0.2)
    assert relabel_order([second, first]) == [first, second], "without delta AP by typicality"


def test_cvat_file(repaired: Path) -> None:
    root = ElementTree.fromstring((repaired / "relabel" / "cvat.xml").read_bytes())
    boxes = [(image.get("name"), box) for image in root.iter("image") for box in image.iter("box")]
    assert [name for name, _ in boxes] == ["3.png"] * 2 + ["2.png"] * 3
    proposal = boxes[1][1]
    assert proposal.get("label") == HOSTILE.replace("\x01", "?") and float(proposal.get("xbr") or 0) == 30
    assert {part.get("name"): part.text for part in proposal} == {"proposal": "yes", "score": "0.900"}
    assert boxes[0][1].get("source") == "file" and proposal.get("source") == "auto"


def test_cvats_own_types_accept_the_files(repaired: Path) -> None:
    models = pytest.importorskip("cvat_sdk.models", reason="cvat-sdk is not installed")
    for label in json.loads((repaired / "relabel" / "cvat-labels.json").read_text()):
        attributes = [models.AttributeRequest(**attribute) for attribute in label["attributes"]]
        assert models.PatchedLabelRequest(name=label["name"], attributes=attributes).name == label["name"]
    root = ElementTree.fromstring((repaired / "relabel" / "cvat.xml").read_bytes())
    for image in root.iter("image"):
        for box in image.iter("box"):
            points = [float(box.get(key) or "nan") for key in ("xtl", "ytl", "xbr", "ybr")]
            shape = models.LabeledShapeRequest(
                type="rectangle",
                frame=int(image.get("id") or -1),
                label_id=1,
                points=points,
                source=box.get("source"),
                occluded=box.get("occluded") == "1",
                z_order=int(box.get("z_order") or 0),
            )
            assert not any(map(math.isnan, shape.points))


def test_datumaro_loads_the_cvat_file(repaired: Path, originals: Path, tmp_path: Path) -> None:
    """The library with which CVAT reads and writes data sets."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    (tmp_path / "annotations.xml").write_bytes((repaired / "relabel" / "cvat.xml").read_bytes())
    shutil.copytree(originals, tmp_path / "images")
    dataset = datumaro.Dataset.import_from(str(tmp_path), "cvat")
    labels = [category.name for category in dataset.categories()[datumaro.AnnotationType.label].items]
    assert labels == ["boat", HOSTILE.replace("\x01", "?")]
    items = {item.id: item for item in dataset}
    assert set(items) == {"2", "3"} and [len(items[name].annotations) for name in ("2", "3")] == [3, 2]
    proposal = items["3"].annotations[1]
    assert labels[proposal.label] == labels[1] and tuple(proposal.points) == (10, 10, 30, 30)
    assert proposal.attributes["score"] in (0.9, "0.900")


def test_label_studio_file(repaired: Path) -> None:
    tasks = json.loads((repaired / "relabel" / "label-studio.json").read_text())
    assert [task["data"]["file_name"] for task in tasks] == ["3.png", "2.png"]
    results = tasks[1]["predictions"][0]["result"]
    assert [result["id"] for result in results] == ["object-0", "image-2-detection-2", "image-2-detection-1"]
    value = results[1]["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (70, 70, 20, 25) and results[1]["score"] == 0.9


def test_label_studios_own_checks_accept_the_file(repaired: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    interface = sdk.LabelInterface((repaired / "relabel" / "label-studio-config.xml").read_text())
    interface.validate()
    for task in json.loads((repaired / "relabel" / "label-studio.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction)
            wrong = [{**prediction["result"][0], "from_name": "other"}]
            assert not interface.validate_prediction({**prediction, "result": wrong})


def test_an_interrupted_repair_runs_again(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(remedies, "write_training_set", interrupt)
        detcam.repair(report, tmp_path, transplants=0)
    half = json.loads((tmp_path / "repair.json").read_text())
    assert (tmp_path / "relabel").is_dir() and half["finished"] is False and not half["files"]
    (tmp_path / f".{'0' * 32}.tmp").write_bytes(b"half")
    repaired = detcam.repair(report, tmp_path, transplants=0)
    content = json.loads((tmp_path / "repair.json").read_text())
    assert content["finished"] is True and content["files"] == repaired.files != {}
    assert (tmp_path / "README.md").exists() and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["../outside/0.png", "/outside/0.png", "linked/0.png"])
def test_names_do_not_lead_out_of_the_folders(name: str, report: Path, originals: Path, tmp_path: Path) -> None:
    images, outside = tmp_path / "images", tmp_path / "outside"
    images.mkdir(), outside.mkdir()
    Image.fromarray(np.full((SIZE, SIZE, 3), 255, np.uint8)).save(outside / "0.png")
    (images / "linked").symlink_to(outside)
    (images / "inside.png").symlink_to(originals / "1.png")
    shutil.copy(originals / "1.png", images / "1.png")
    name = name.replace("/outside", str(outside)) if name.startswith("/") else name
    content = json.loads((report / "audit.json").read_text())
    content["images"][0]["file_name"] = name
    data = ReportData(report, content, images)
    first, second, *_ = data.images.values()
    assert data.original(first) is None and data.pixels(first).mean() < 200, "the image of the report is taken"
    assert data.original(second) == images / "1.png" and data.original(replace(second, file_name="inside.png")) is None
    content["images"][0]["file"] = content["cases"][0]["files"]["needed"] = str(outside / "0.png")
    data = ReportData(report, content, images)
    with pytest.raises(ValueError, match="names a file outside of its folder: .*0.png"):
        data.images  # noqa: B018
    with pytest.raises(ValueError, match="names a file outside of its folder: .*0.png"):
        data.evidence(data.cases[content["cases"][0]["id"]])


def test_wrong_arguments(report: Path, repaired: Path, tmp_path: Path) -> None:
    detcam.repair(report, repaired, transplants=0)
    assert len(list((repaired / "counterfactual" / "labels").iterdir())) == 4, "an earlier repair is replaced"
    with pytest.raises(ValueError, match="audit.json"):
        detcam.repair(tmp_path, tmp_path / "out")
    with pytest.raises(TypeError, match="expected an Audit"):
        detcam.repair(3, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0"):
        detcam.repair(report, tmp_path / "out", transplants=-1)
    with pytest.raises(ValueError, match="folder of images"):
        detcam.repair(report, tmp_path / "out", images=tmp_path / "nowhere")
    kept = repaired / f".{'0' * 32}.tmp"
    kept.write_bytes(b"of another process")
    for folder in (repaired, tmp_path / "new"):
        with lock_folder(folder), pytest.raises(RuntimeError, match="another run is working"):
            detcam.repair(report, folder, transplants=0)
    assert kept.exists()
    kept.unlink()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no repair wrote"):
        detcam.repair(report, tmp_path)
