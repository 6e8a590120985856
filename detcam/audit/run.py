"""The false-positive audit from end to end: find, match, explain, verify, group, report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detcam.adapters import Adapter, adapt
from detcam.annotations import Annotations
from detcam.audit.analysis import ErrorAnalysis, analyze_errors
from detcam.audit.case import Case, Group, Truth
from detcam.audit.errors import ErrorCase
from detcam.audit.examine import Examined, Examiner, Picture
from detcam.audit.grouping import group_cases
from detcam.audit.matching import IouType
from detcam.audit.reading import case_reading
from detcam.audit.store import Store
from detcam.detections import Detections, class_name
from detcam.explain import Method, make_cam
from detcam.images import load_image, to_uint8
from detcam.pictures import Picture as Pixels
from detcam.problems import Problem, Problems
from detcam.report import ReportWriter, Summary
from detcam.true_objects import TrueObjects

METHOD = "reachcam"
"""What explains errors unless the user says otherwise: its peaks lie on certified causes outside the box."""
UNREADABLE = "unreadable picture"


@dataclass(frozen=True)
class Settings:
    """What an audit was asked for.

    Attributes:
        score_threshold: least score of a detection that matters to the user, in [0, 1]; errors at or above it are
            explained, and an error is gone when its score falls below it. Average precision counts all detections.
        explain: so many false positives are explained and verified, the highest scores first.
        explain_missed: so many missed objects are explained, the largest first.
        iou_threshold: least overlap of a right detection, in (0, 1].
        background_threshold: greatest overlap of a detection of nothing.
        iou_type: ``"bbox"`` or ``"segm"``.
    """

    score_threshold: float = 0.3
    explain: int = 200
    explain_missed: int = 50
    iou_threshold: float = 0.5
    background_threshold: float = 0.1
    iou_type: IouType = "bbox"

    def __post_init__(self) -> None:
        if not 0 < self.score_threshold < 1:
            raise ValueError(f"expected score_threshold between 0 and 1; got {self.score_threshold}")
        if self.explain < 0 or self.explain_missed < 0:
            raise ValueError(
                f"expected explain and explain_missed of at least 0; got {self.explain} and {self.explain_missed}"
            )


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        analysis: every error, named, counted and priced.
        cases: the same errors in the same order, explained where they were to be.
        groups: explained errors that share a cause, the costliest first.
        problems: what was wrong with the data, and what was left out because of it.
        report: the report's ``index.html``, or None where no folder was given.
        seconds: how long it took.
    """

    analysis: ErrorAnalysis
    cases: tuple[Case, ...]
    groups: tuple[Group, ...]
    problems: Problems
    report: Path | None
    seconds: float

    @property
    def explained(self) -> list[Case]:
        """The cases that have a heatmap."""
        return [case for case in self.cases if case.method]

    @property
    def confirmed(self) -> list[Case]:
        """The cases whose evidence is the cause."""
        return [case for case in self.cases if case.verdict == "confirmed"]


def audit(
    model: Adapter | nn.Module | Any,
    images: str | Path,
    annotations: str | Path | Annotations,
    *,
    out: str | Path | None = None,
    score_threshold: float = 0.3,
    explain: int = 200,
    explain_missed: int = 50,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    iou_type: IouType = "bbox",
    class_map: Mapping[str | int, str | int] | None = None,
    method: Method = METHOD,
    target_layers: Sequence[nn.Module | str] | nn.Module | str | None = None,
    batch_size: int = 4,
    resume: bool = False,
    progress: bool = False,
    model_name: str | None = None,
    **adapter_options: Any,
) -> Audit:
    """Why did it fire there? What a detector gets wrong on annotated pictures, and what each mistake rests on.

    Detections are matched by COCO's rules and errors named as TIDE does; the false positives with the highest scores
    and the largest missed objects are explained; each explanation is verified by taking its evidence away; errors
    that share a cause are grouped by what they cost.

    Args:
        model: a detector of a supported family, or an adapter.
        images: the folder that the annotations' file names start from.
        annotations: a COCO JSON file, or what was read from one.
        out: the report's folder; None makes no report.
        score_threshold: the least score that matters to you; see `Settings`.
        explain: so many false positives are explained, the highest scores first.
        explain_missed: so many missed objects are explained, the largest first.
        iou_threshold: least overlap of a right detection.
        background_threshold: greatest overlap of a detection of nothing.
        iou_type: ``"bbox"``, or ``"segm"`` to match masks.
        class_map: category name (or id) to the model's class name (or index), where they differ.
        method: as in `detcam.explain`.
        target_layers: as in `detcam.explain`; None takes the method's own choice.
        batch_size: pictures per forward pass.
        resume: go on with an interrupted audit in `out`.
        progress: whether to show progress bars on stderr.
        model_name: what the report calls the model.
        **adapter_options: further arguments of `detcam.adapters.adapt`.

    Raises:
        TypeError: the model is no detector.
        ValueError: an argument, the annotations or the folder are not as expected.
    """
    start = time.perf_counter()
    settings = Settings(score_threshold, explain, explain_missed, iou_threshold, background_threshold, iou_type)
    adapter = adapt(model, target_layers=target_layers, **adapter_options)
    if adapter.task != "detection":
        raise TypeError(f"an audit is of a detector; {type(adapter.model).__name__} does {adapter.task}")
    truth = annotations if isinstance(annotations, Annotations) else Annotations.load(annotations, images)
    truth = truth.for_classes(adapter.names, class_map)
    name = model_name or type(adapter.model).__name__
    cam = make_cam(adapter, method)
    asked = {
        **vars(settings),
        "method": cam.name,
        "layers": list(adapter.layer_names),
        "model": name,
        "annotations": truth.path.name,
        "pictures": len(truth),
        "weights": digest(adapter.model),
    }
    work = _Work(adapter, settings, progress, batch_size)
    if out is not None:
        work.store = Store(Path(out), asked, resume=resume)
        work.writer = ReportWriter(Path(out))
    elif resume:
        raise ValueError("resume goes on with the audit in a folder; say which with out=")
    truth, found = work.detect(truth)
    analysis = analyze_errors(
        found,
        truth,
        iou_threshold=iou_threshold,
        background_threshold=background_threshold,
        iou_type=iou_type,
        labels=truth.labels,
    )
    plain = [_case(analysis, position, found, truth) for position in range(len(analysis))]
    chosen = _choose(analysis, truth, settings)
    examined = work.explain(Examiner(adapter, cam, truth.names, score_threshold), analysis, found, truth, plain, chosen)
    cases, groups = _grouped(analysis, plain, examined)
    seconds = time.perf_counter() - start
    report = None
    if work.writer is not None:
        report = work.writer.finish(
            Summary.from_analysis(
                analysis,
                truth,
                model=name,
                adapter=adapter.family,
                iou_threshold=iou_threshold,
                cases=cases,
                groups=groups,
                settings=asked,
                problems=Problems(()),
                seconds=seconds,
            )
        )
    return Audit(analysis, tuple(cases), tuple(groups), truth.problems, report, seconds)


@dataclass
class _Work:
    """The parts that take time, each of which goes on where it was interrupted."""

    adapter: Adapter
    settings: Settings
    progress: bool
    batch_size: int
    store: Store | None = None
    writer: ReportWriter | None = None

    def detect(self, truth: Annotations) -> tuple[Annotations, list[Detections]]:
        """What the detector finds in each picture; pictures that cannot be read are left out and counted."""
        known = {} if self.store is None else self.store.detections(self.adapter.names)
        waiting = [image for image in truth if repr(image.image_id) not in known]
        for some in self._bar(_batches(waiting, self.batch_size), "detecting", len(waiting), len):
            readable: list[tuple[TrueObjects, Tensor]] = []
            for image in some:
                try:
                    readable.append((image, load_image(image.path)))
                except ValueError as error:
                    self._keep(known, image, str(error))
            if not readable:
                continue
            found = self.adapter.predict([picture for _, picture in readable], batch_size=self.batch_size)
            for (image, _), one in zip(readable, found, strict=True):
                self._keep(known, image, one if self.settings.iou_type == "segm" else replace(one, masks=None))
        problems = [
            Problem(UNREADABLE, f"{image.file_name}: {known[repr(image.image_id)]}; left out", image.image_id)
            for image in truth
            if isinstance(known[repr(image.image_id)], str)
        ]
        kept = [image for image in truth if not isinstance(known[repr(image.image_id)], str)]
        truth = replace(truth, images=tuple(kept), problems=truth.problems + Problems(problems))
        found_all = [known[repr(image.image_id)] for image in kept]
        return truth, [one for one in found_all if isinstance(one, Detections)]

    def _keep(self, known: dict[str, Detections | str], image: TrueObjects, found: Detections | str) -> None:
        if not isinstance(found, str):
            found = replace(found, extras={})
        known[repr(image.image_id)] = found
        if self.store is not None:
            self.store.add_detections(repr(image.image_id), found)

    def explain(
        self,
        examiner: Examiner,
        analysis: ErrorAnalysis,
        found: Sequence[Detections],
        truth: Annotations,
        plain: Sequence[Case],
        chosen: Sequence[int],
    ) -> dict[str, Examined]:
        """Explain and verify the chosen errors, picture by picture."""
        done = {} if self.store is None else self.store.cases()
        by_image: dict[int, list[int]] = {}
        for position in chosen:
            if plain[position].id not in done:
                by_image.setdefault(analysis[position].image, []).append(position)
        total = sum(len(positions) for positions in by_image.values())
        batches = _batches(sorted(by_image), self.batch_size)
        for some in self._bar(batches, "explaining", total, lambda some: sum(len(by_image[i]) for i in some)):
            pictures = []
            for image in some:
                own = by_image[image]
                pictures.append(
                    Picture(
                        load_image(truth[image].path),
                        found[image],
                        truth[image],
                        [analysis[position] for position in own],
                        [plain[position] for position in own],
                    )
                )
            for picture, results in zip(pictures, examiner.examine(pictures), strict=True):
                self._write(picture, results)
                for result in results:
                    done[result.case.id] = replace(result, maps=None)
        return done

    def _write(self, picture: Picture, results: Sequence[Examined]) -> None:
        """Put a picture's cases into the report and, once they are there, on record."""
        if self.writer is None or self.store is None:
            return
        pixels: Pixels = to_uint8(picture.image)
        self.writer.picture(picture.truth.image_id, picture.truth.file_name, pixels, picture.truth)
        for result in results:
            self.writer.case(result.case, pixels, result.maps)
            self.store.add_case(result)

    def _bar(self, batches: Iterable[list[Any]], words: str, total: int, size: Any) -> Iterator[list[Any]]:
        with tqdm(total=total, desc=words, disable=None if self.progress else True, leave=False) as bar:
            for batch in batches:
                yield batch
                bar.update(size(batch))


def digest(model: nn.Module) -> str:
    """A short name for a model's weights: an audit is not gone on with by another model."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _choose(analysis: ErrorAnalysis, truth: Annotations, settings: Settings) -> list[int]:
    """Positions of the errors that are explained."""
    wrong = [
        (-(case.score or 0.0), position)
        for position, case in enumerate(analysis)
        if case.is_false_positive and (case.score or 0.0) >= settings.score_threshold
    ]
    missed = [
        (-float(truth[case.image].area[case.truth]), position)
        for position, case in enumerate(analysis)
        if case.detection is None and case.truth is not None
    ]
    return [position for _, position in sorted(wrong)[: settings.explain]] + [
        position for _, position in sorted(missed)[: settings.explain_missed]
    ]


def _case(analysis: ErrorAnalysis, position: int, found: Sequence[Detections], truth: Annotations) -> Case:
    """An error as a case, not yet explained."""
    error: ErrorCase = analysis[position]
    image, own = truth[error.image], found[error.image]
    at = error.truth
    if error.detection is not None:
        box, what = own.boxes_xyxy[error.detection].tolist(), f"detection-{error.detection}"
    else:
        box, what = image.boxes_xyxy[at].tolist(), f"missed-{at}"
    concerned = None
    if at is not None:
        x1, y1, x2, y2 = image.boxes_xyxy[at].tolist()
        overlap = max(error.iou_same_class, error.iou_other_class)
        if error.detection is not None:
            overlap = float(analysis.matches[error.image].iou[error.detection, at])
        label = int(image.labels[at])
        identity = int(image.ids[at])
        concerned = Truth((x1, y1, x2, y2), label, class_name(analysis.names, label), overlap, identity)
    case = Case(
        id=f"image-{error.image_id}-{what}",
        image_id=error.image_id,
        file_name=image.file_name,
        image_size_hw=image.image_size_hw,
        type=error.type,
        label=error.label,
        name=class_name(analysis.names, error.label),
        score=error.score or 0.0,
        box_xyxy=(box[0], box[1], box[2], box[3]),
        is_false_positive=error.is_false_positive,
        truth=concerned,
        ap_lost=float(analysis.lost_by_case[position]),
    )
    return replace(case, reading=case_reading(case))


def _grouped(
    analysis: ErrorAnalysis, plain: Sequence[Case], examined: Mapping[str, Examined]
) -> tuple[list[Case], list[Group]]:
    """All cases, the explained ones with the number of their group; and the groups."""
    positions = [position for position, case in enumerate(plain) if case.id in examined]
    explained = [examined[plain[position].id] for position in positions]
    groups = group_cases(
        [one.case for one in explained],
        [one.features for one in explained],
        lambda members: analysis.average_precision_lost([positions[member] for member in members]),
    )
    cases = list(plain)
    for group, members in groups:
        for member in members:
            cases[positions[member]] = replace(explained[member].case, group=group.number)
    return cases, [group for group, _ in groups]
