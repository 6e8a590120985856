"""From the first audit of a detector of blood cells to a changed one: does training with corrected annotations help?

    python tests/peers/measure_blood_cells.py [--out build/blood-cells] [--epochs 5] [--explain 200]

1. Audit the reference YOLO11n on its training images, and let ``detcam.repair`` write the relabel queue.
2. Fine-tune it twice with ultralytics, equally long and with the same seed: with the annotations as they are, and with
   the proposals of the queue accepted as they are.
3. Audit the three detectors on the test images and compare the audits: with the test annotations as they are, and with
   the possible missing annotations of *another*, two-stage detector added, which favor none of the three.

Finished steps are kept in the folder, for a run with the same options. It takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detcam
from detcam.adapters import Adapter
from detcam.data import Annotations
from detcam.models import load_model
from tests.peers.measure_audit import DATA, detector_and_annotations

IMAGES = DATA / "bccd" / "images"
WEIGHTS = DATA / "models" / "bccd_yolo11n.pt"
IMAGE_SIZE = 320


def keep_settings(out: Path, settings: dict[str, int]) -> None:
    """Note the settings of the results in a folder.

    Raises:
        ValueError: The folder has results of other settings, which would be taken for those of this run.
    """
    file = out / "settings.json"
    if file.exists():
        kept = json.loads(file.read_bytes())
    elif out.exists() and any(out.iterdir()):
        kept = "unknown settings"
    else:
        kept = settings
    if kept != settings:
        raise ValueError(
            f"expected {out} to be empty or to have results of {settings}, got results of {kept}; "
            "choose another folder with --out, use the settings of the results, or remove the folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")


def yolo(weights: Path) -> Adapter:
    return load_model(str(weights), trust_checkpoint=True, image_size=IMAGE_SIZE)


def audit(adapter: Adapter, annotations: Path, out: Path, explain: int, explain_missed: int = 0) -> Path:
    """Audit a detector, unless the folder has a finished audit."""
    if not (out / "index.html").exists():
        detcam.audit(adapter, IMAGES, annotations, out=out, explain=explain, explain_missed=explain_missed, resume=True)
    return out


def add_proposals(annotations: Path, queue: Path, out: Path) -> int:
    """Write annotations with the proposals of a relabel queue accepted as they are; return their number."""
    content, queued = json.loads(annotations.read_bytes()), json.loads(queue.read_bytes())
    files = {image["id"]: image["file_name"] for image in queued["images"]}
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    categories = {category["name"]: category["id"] for category in content["categories"]}
    names = {category["id"]: category["name"] for category in queued["categories"]}
    proposals = [entry for entry in queued["annotations"] if "score" in entry]
    unused = max((entry["id"] for entry in content["annotations"]), default=0) + 1
    for new_id, entry in enumerate(proposals, unused):
        content["annotations"].append(
            {
                "id": new_id,
                "image_id": ids[files[entry["image_id"]]],
                "category_id": categories[names[entry["category_id"]]],
                "bbox": entry["bbox"],
                "area": entry["bbox"][2] * entry["bbox"][3],
                "iscrowd": 0,
            }
        )
    out.write_text(json.dumps(content), encoding="utf-8")
    return len(proposals)


def queue_of(report: Path, out: Path) -> Path:
    """The relabel queue of a report."""
    if not (out / "relabel" / "coco.json").exists():
        print(detcam.repair(report, out, images=IMAGES), flush=True)
    return out / "relabel" / "coco.json"


def write_yolo_data(annotations: Path, out: Path) -> Path:
    """Write a training set for ultralytics; the classes are those of the annotations, in their order."""
    loaded = Annotations.load(annotations, IMAGES)
    categories = json.loads(annotations.read_bytes())["categories"]
    names = [category["name"] for category in categories]
    classes = {category["id"]: index for index, category in enumerate(categories)}
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "labels").mkdir(exist_ok=True)
    for image in loaded:
        height, width = image.image_size_hw
        lines = []
        for category, (x1, y1, x2, y2) in zip(image.category_ids.tolist(), image.boxes_xyxy.tolist(), strict=True):
            sides = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{classes[category]} " + " ".join(f"{value:.6f}" for value in sides))
        shutil.copy(image.path, out / "images")
        (out / "labels" / image.path.with_suffix(".txt").name).write_text("\n".join(lines), encoding="utf-8")
    path = (out / "images").resolve()
    (out / "data.yaml").write_text(f"train: {path}\nval: {path}\nnames: {json.dumps(names)}\n", encoding="utf-8")
    return out / "data.yaml"


def fine_tune(data: Path, out: Path, epochs: int) -> Path:
    """Fine-tune the reference YOLO with ultralytics, unless the folder has its weights."""
    from ultralytics import YOLO

    weights = out / "weights" / "last.pt"
    if not weights.exists():
        settings: dict[str, Any] = {"optimizer": "AdamW", "lr0": 5e-4, "warmup_epochs": 1, "mosaic": 0.0, "batch": 16}
        settings |= {"imgsz": IMAGE_SIZE, "epochs": epochs, "seed": 0, "deterministic": True, "device": "cpu"}
        settings |= {"workers": 0, "amp": False, "plots": False, "val": False, "verbose": False, "exist_ok": True}
        YOLO(str(WEIGHTS)).train(data=str(data), project=str(out.parent.resolve()), name=out.name, **settings)
    return weights


def show(title: str, old: Path, new: Path, out: Path) -> None:
    """Print what changed between two audits, and write its page."""
    compared = detcam.compare_audits(old, new, out=out)
    low, high = compared.average_precision_interval
    print(
        f"{title}: average precision {compared.old_average_precision:.3f} to {compared.new_average_precision:.3f}, "
        f"change {low:+.3f} to {high:+.3f}; " + " ".join(compared.headline()),
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/blood-cells"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--explain", type=int, default=200, help="false positives of the training images to explain")
    parser.add_argument("--explain-test", type=int, default=40, help="false positives of the test images to explain")
    args = parser.parse_args(arguments)
    out: Path = args.out
    keep_settings(out, {"epochs": args.epochs, "explain": args.explain, "explain_test": args.explain_test})

    print("1. Audit of the training images")
    train, test = DATA / "bccd" / "train.json", DATA / "bccd" / "test.json"
    report = audit(yolo(WEIGHTS), train, out / "report-train", args.explain, 20)
    count = add_proposals(train, queue_of(report, out / "repair"), out / "train-corrected.json")
    print(f"{count} proposals accepted")

    print("2. Fine-tuning")
    models = {"before": WEIGHTS}
    for name, file in (("as-annotated", train), ("corrected", out / "train-corrected.json")):
        data = write_yolo_data(file, out / f"data-{name}")
        models[name] = fine_tune(data, out / f"train-{name}", args.epochs)

    print("3. Test images")
    other, _ = detector_and_annotations("fasterrcnn", out)
    report = audit(other, test, out / "report-two-stage", 60)
    count = add_proposals(test, queue_of(report, out / "repair-test"), out / "test-corrected.json")
    print(f"{count} objects added to the test annotations by a two-stage detector")
    for labels, explain in ((test, args.explain_test), (out / "test-corrected.json", 0)):
        reports = {
            name: audit(yolo(path), labels, out / f"{labels.stem}-{name}", explain, explain // 4)
            for name, path in models.items()
        }
        for old, new in (("before", "as-annotated"), ("before", "corrected"), ("as-annotated", "corrected")):
            show(
                f"{labels.stem}, {old} to {new}", reports[old], reports[new], out / f"compare-{labels.stem}-{old}-{new}"
            )


if __name__ == "__main__":
    main()
