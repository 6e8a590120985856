"""Size, speed and memory of a large report, and of the page in headless Chromium.

    python tests/peers/measure_report.py [--images 5000] [--listed 20000] [--low 160000] [--explained 1000] [--out DIR]
        [--runs 5]

Writes a report with made-up cases and drawn images, and prints the processor time of the files of the explained cases,
the time and memory of its last step, which writes all errors, and the sizes of its files. Then it opens the page from
disk and prints, as medians over the runs: the time to the first paint and to the complete list; the time from a change
of each filter and order to the next drawn frame; and the memory of the tab (proportional set size of its process) after
the start, after scrolling past 1,200 cards, after opening 30 cases, and with all errors loaded. A second call with the
same folder measures the page alone.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detcam.auditing.analysis import ClassSummary
from detcam.auditing.case import AuditCase, CaseMaps, CasePart, ErrorGroup, GroundTruthObject, Trial
from detcam.auditing.errors import ERROR_TYPES
from detcam.auditing.report import ReportSummary, ReportWriter
from detcam.auditing.report.tables import write_errors
from detcam.data.ground_truth import GroundTruth
from detcam.utils.opencv import cv2
from tests.auditing.report.browser import browser

SIZE_HW = (480, 640)
OBJECTS = 7
CLASSES = 80
THRESHOLD = 0.3
LOCATIONS = ("predicted box", "ground truth", "same class", "ring", "scene")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 5000), ("listed", 20_000), ("low", 160_000), ("explained", 1000), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        if not (out / "index.html").exists():
            write_report(out, options.images, options.listed, options.low, options.explained)
        print_sizes(out)
        measure_page(out / "index.html", options.runs)


def make_cases(images: int, listed: int, low: int, explained: int) -> list[AuditCase]:
    """Cases image by image: the explained ones spread over the images, the others listed or below the threshold."""
    rng = np.random.default_rng(0)
    total = listed + low
    image_of = np.sort(rng.integers(0, images, total))
    is_listed = np.zeros(total, dtype=bool)
    is_listed[rng.permutation(total)[:listed]] = True
    is_explained = np.zeros(total, dtype=bool)
    is_explained[rng.permutation(np.flatnonzero(is_listed))[:explained]] = True
    scores = np.where(is_listed, rng.uniform(THRESHOLD, 1, total), rng.uniform(0.01, THRESHOLD, total))
    kinds = rng.choice(ERROR_TYPES, total, p=[0.15, 0.25, 0.05, 0.05, 0.35, 0.15])
    labels, corners = rng.integers(0, CLASSES, total), rng.uniform(0, 380, (total, 2))
    return [
        make_case(number, int(image_of[number]), str(kinds[number]), int(labels[number]), float(scores[number]),
                  corners[number].tolist(), bool(is_explained[number]))
        for number in range(total)
    ]  # fmt: skip


def make_case(
    number: int, image: int, kind: Any, label: int, score: float, corner: list[float], explained: bool
) -> AuditCase:
    left, top = corner
    box = (left, top, left + 100.5, top + 60.25)
    name = f"class {label}"
    truth = None if kind == "background" else GroundTruthObject(box, label, name, 0.42, 900_000 + number)
    case = AuditCase(
        id=f"image-{image}-detection-{number}",
        image_id=image,
        file_name=f"val2017/{image:012d}.jpg",
        image_size_hw=SIZE_HW,
        type=kind,
        label=label,
        name=name,
        score=score,
        box_xyxy=box,
        is_false_positive=kind != "missed",
        ground_truth=truth,
        delta_ap=score * 1e-4,
        sentence=f"{name} with an IoU of {number % 90 / 100:.2f} with its object",
    )
    if not explained:
        return case
    location: Any = LOCATIONS[number % 5]
    trials = [
        Trial(kind_, fill, score * part, "vanished" if part < 0.3 else "unchanged")  # type: ignore[arg-type]
        for kind_, part in (("without evidence", 0.1), ("random control", 0.95), ("box control", 0.8))
        for fill in ("ring", "linear")
    ]
    return replace(
        case,
        question=f"why {name} here?",
        method="ReachCAM",
        proposal="product of gradients",
        evidence_shares={each: 0.8 if each == location else 0.05 for each in LOCATIONS},
        evidence_location=location,
        evidence_fraction=0.03,
        peak_xy=(10, 10),
        trials=tuple(trials),
        parts=(CasePart(0.01, location, 0.2, needed=True),),
        verdict=("strong", "weak", "not confirmed")[number % 3],  # type: ignore[arg-type]
        effect=0.8,
        reason="absent without the evidence with both fills, present in both controls",
        sentence=f"case {number}: {name}; the evidence lies outside the box, most of it in the ring around it; strong",
        background_type="context" if kind == "background" else None,
    )


def write_report(out: Path, images: int, listed: int, low: int, explained: int) -> None:
    cases = make_cases(images, listed, low, explained)
    writer = ReportWriter(out)
    rng = np.random.default_rng(1)
    seconds = 0.0
    for case in cases:
        if case.method:
            image = cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), SIZE_HW[::-1])
            truth, maps, start = ground_truth(case), maps_of(case), time.process_time()
            writer.image(case.image_id, case.file_name, image, truth)
            writer.case(case, image, maps)
            seconds += time.process_time() - start
    print(f"images, overlays and maps: {1000 * seconds / explained:.1f} CPU ms an explained error")
    chosen = [case for case in cases if case.method]
    sizes = [10] * (explained // 40) + [1] * explained
    groups: list[ErrorGroup] = []
    for size in sizes:
        members, chosen = chosen[:size], chosen[size:]
        if members:
            groups.append(group_of(len(groups), members))
    number_of = {case_id: group.number for group in groups for case_id in group.case_ids}
    cases = [replace(case, group=number_of[case.id]) if case.method else case for case in cases]
    summary = summary_of(cases, groups, images)
    write_errors(out / "first.parquet", cases[:1])  # imports pandas, which an audit has done by then
    (out / "first.parquet").unlink()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    writer.finish(summary)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    count = len(cases)
    print(f"{count:,} errors, {explained:,} explained: the last step takes")
    print(f"{seconds:.1f} CPU seconds ({1000 * seconds / count:.3f} ms an error)")
    print(f"and {grown / 1024:.0f} MB ({grown / count:.2f} kB an error)")


def maps_of(case: AuditCase) -> CaseMaps:
    left, top, right, bottom = (round(value) for value in case.box_xyxy)
    heatmap = np.zeros(SIZE_HW, np.uint8)
    cv2.circle(heatmap, ((left + right) // 2, (top + bottom) // 2), 40, 255, -1)
    heatmap = cv2.GaussianBlur(heatmap, (0, 0), 12)
    evidence = heatmap > 128
    return CaseMaps(heatmap, evidence, evidence, np.roll(evidence, 150, 1))


def ground_truth(case: AuditCase) -> GroundTruth:
    boxes = torch.rand(OBJECTS, 4).mul(200) + torch.tensor([0.0, 0, 200, 200])
    return GroundTruth(
        image_id=case.image_id,
        file_name=case.file_name,
        path=Path(case.file_name),
        image_size_hw=SIZE_HW,
        boxes_xyxy=boxes,
        boxes_xywh=np.zeros((OBJECTS, 4)),
        labels=torch.arange(OBJECTS),
        category_ids=torch.arange(OBJECTS),
        crowd=torch.zeros(OBJECTS, dtype=torch.bool),
        area=torch.ones(OBJECTS),
        ids=torch.arange(OBJECTS),
        segmentations=(None,) * OBJECTS,
        names={label: f"class {label}" for label in range(CLASSES)},
    )


def group_of(number: int, cases: list[AuditCase]) -> ErrorGroup:
    first, confirmed = cases[0], sum(case.confirmed for case in cases)
    sentence = f"{len(cases)} {first.name}: {first.type}, evidence in the {first.evidence_location}"
    ids = tuple(case.id for case in cases)
    location = first.evidence_location
    return ErrorGroup(number, first.type, first.label, first.name, location, ids, 0.01, confirmed, sentence)


def summary_of(cases: list[AuditCase], groups: list[ErrorGroup], images: int) -> ReportSummary:
    counts = {kind: sum(case.type == kind for case in cases) for kind in ERROR_TYPES}
    share = {kind: count // CLASSES for kind, count in counts.items()}
    return ReportSummary(
        model="measured",
        adapter="none",
        annotations="instances_val2017.json",
        image_count=images,
        object_count=OBJECTS * images,
        iou_threshold=0.5,
        average_precision=0.4,
        false_positive_count=sum(case.is_false_positive for case in cases),
        false_positive_delta_ap=0.2,
        error_counts=counts,
        delta_ap_by_type=dict.fromkeys(ERROR_TYPES, 0.01),
        classes=tuple(
            ClassSummary(label, f"class {label}", 0.4, 400, 300, 200, 100, share) for label in range(CLASSES)
        ),
        settings={"score_threshold": THRESHOLD},
        groups=tuple(groups),
        cases=tuple(cases),
    )


def print_sizes(out: Path) -> None:
    print(f"index.html {(out / 'index.html').stat().st_size / 1e3:.0f} kB")
    for kind in ("summary", "rows", "details"):
        sizes = [path.stat().st_size / 1e3 for path in (out / "data").glob(f"{kind}-*")]
        print(f"data/{kind}: {len(sizes)} files, {sum(sizes) / 1e3:.1f} MB, the largest {max(sizes):.0f} kB")


def measure_page(index: Path, runs: int) -> None:
    measured = [dict(measure_once(index)) for _ in range(runs)]
    for name in measured[0]:
        print(f"{name}: {statistics.median(each[name] for each in measured):.1f}")


READY = "document.querySelectorAll('.case-card').length > 0"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
CHANGE = """([id, value]) => new Promise(resolve => {
  const node = document.getElementById(id), begin = performance.now();
  node.value = value;
  node.dispatchEvent(new Event(node.tagName === 'SELECT' ? 'change' : 'input'));
  const channel = new MessageChannel();
  channel.port1.onmessage = () => resolve(performance.now() - begin);
  requestAnimationFrame(() => channel.port2.postMessage(0));
})"""
CHANGES = [
    ("by-type", "localization"), ("by-label", "7"), ("by-label", ""), ("by-type", ""), ("by-text", "0001"),
    ("by-text", ""), ("by-low", "0.6"), ("by-low", "0"), *(("by-order", order) for order in (
        "file name", "class", "delta AP", "type", "evidence location", "group", "verdict", "confirmed effect", "score",
        "explained first",
    )),
]  # fmt: skip


def measure_once(index: Path) -> Iterator[tuple[str, float]]:
    with browser() as started:
        page = started.new_context(viewport={"width": 1280, "height": 900}).new_page()
        begin = time.perf_counter()
        page.goto(index.as_uri())
        page.wait_for_selector(".case-card")
        yield "list complete after, ms", 1000 * (time.perf_counter() - begin)
        page.wait_for_timeout(500)
        yield "first paint after, ms", page.evaluate(PAINT)
        yield "tab after the start, MB", tab_memory(started)
        times = {f"{name}={value}": page.evaluate(CHANGE, [name, value]) for name, value in CHANGES}
        slowest = max(times, key=lambda name: times[name])
        print(f"  slowest: {slowest} {times[slowest]:.0f} ms", file=sys.stderr)
        yield "filter or sort, median, ms", statistics.median(times.values())
        yield "filter or sort, slowest, ms", times[slowest]
        for _ in range(20):
            page.evaluate("document.getElementById('end').scrollIntoView()")
            page.wait_for_timeout(50)
        yield "cards in the page after scrolling past 1200", page.locator(".case-card").count()
        yield "tab after scrolling, MB", tab_memory(started)
        for _ in range(20):
            page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_selector("#case:not([hidden]) .viewer")
        for _ in range(30):
            page.keyboard.press("j")
            page.wait_for_timeout(20)
        yield "tab after 30 cases, MB", tab_memory(started)
        collect_garbage(page)
        yield "tab after 30 cases and garbage collection, MB", tab_memory(started)
        page.keyboard.press("Escape")
        begin = time.perf_counter()
        while page.locator("#more").is_visible():
            page.click("#more")
            page.wait_for_selector("#more:not([disabled])", state="attached")
        yield "loading all errors, ms", 1000 * (time.perf_counter() - begin)
        yield "filter with all errors, ms", page.evaluate(CHANGE, ["by-text", "0001"])
        collect_garbage(page)
        yield "tab with all errors after garbage collection, MB", tab_memory(started)


def collect_garbage(page: Any) -> None:
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.detach()


def tab_memory(started: Any) -> float:
    """Proportional set size of the browser's tab processes, MB."""
    session = started.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    total = 0
    for process in processes:
        if process["type"] == "renderer":
            lines = Path(f"/proc/{process['id']}/smaps_rollup").read_text().splitlines()
            total = max(total, sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
    return total / 1024


if __name__ == "__main__":
    main()
