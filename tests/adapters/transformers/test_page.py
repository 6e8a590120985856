"""The code of the page about transformers runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.adapters.transformers.detectors import DETECTORS, image_processor
from tests.adapters.transformers.text import grounding_dino

pytest.importorskip("transformers", reason="transformers is not installed")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "transformers.md"


def test_code_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    DETECTORS["rt_detr"]().save_pretrained("rt_detr")
    image_processor("RTDetr").save_pretrained("rt_detr")
    model, processor = grounding_dino()
    model.save_pretrained("grounding_dino")
    processor.save_pretrained("grounding_dino")
    pixels = torch.randint(0, 256, (96, 128, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save("street.png")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["explanations"][0]) == 3  # type: ignore[index]
    assert re.search(r"^(boat|buoy): heat .*, the score drops by", capsys.readouterr().out, flags=re.M)
