"""Small transformers with seeded weights: a ViT of each library, and a DETR with its formula at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detcam.adapters import detector
from detcam.adapters.custom_detector import CustomDetectorAdapter


def loud(model: Any) -> Any:
    """Enlarge the weights: attention of random transformers is nearly uniform, and its gradients are negligible."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        spread = 0.35 if parameter.ndim > 1 else 0.1
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def attention_rows(query: Tensor, key: Tensor) -> Tensor:
    """Softmax attention (2, queries, keys) of two heads with 8 channels, row by row."""
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        rows = []
        for row in query[:, part]:
            powers = torch.stack([(row @ other / 8**0.5).exp() for other in key[:, part]])
            rows.append(powers / powers.sum())
        heads.append(torch.stack(rows))
    return torch.stack(heads)


def torchvision_vit(layers: int = 3) -> Any:
    """A ViT with class token on 4 x 4 patches of 8 pixels."""
    from torchvision.models import VisionTransformer

    return loud(VisionTransformer(32, 8, layers, 2, 16, 24, num_classes=4))


def timm_vit(**options: Any) -> Any:
    """timm's ViT on 4 x 4 patches of 8 pixels."""
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return loud(VisionTransformer(**{**sizes, "num_classes": 4, **options}))


class TinyDETR(nn.Module):
    """Convolutions to stride 8, two encoder layers, three decoder layers, class and box heads for each query."""

    def __init__(self, queries: int = 5, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), nn.ReLU(inplace=True), nn.Conv2d(8, width, 2, 2), nn.ReLU(inplace=True)
        )
        encoder = nn.TransformerEncoderLayer(width, 2, 24, dropout=0.1, batch_first=True)
        decoder = nn.TransformerDecoderLayer(width, 2, 24, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 3)
        self.queries = nn.Parameter(torch.zeros(queries, width))
        self.positions = nn.Parameter(torch.zeros(24, width))
        self.classes = nn.Linear(width, classes)
        self.boxes = nn.Linear(width, 4)
        loud(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(x).flatten(2).mT
        memory = self.encoder(tokens + self.positions[: tokens.shape[1]])
        found = self.decoder(self.queries.expand(len(x), -1, -1), memory)
        return self.boxes(found).sigmoid(), self.classes(found)


def decode(raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes around a center, pixels of a 48 x 32 input (width x height), and sigmoid scores."""
    size = torch.tensor([48.0, 32.0])
    center, extent = raw[0][..., :2] * size, (raw[0][..., 2:] * 0.4 + 0.1) * size
    return torch.cat([center - extent / 2, center + extent / 2], -1), raw[1].sigmoid()


def tiny_detr(**options: Any) -> tuple[TinyDETR, CustomDetectorAdapter]:
    """The DETR and its adapter, for images of any size, stretched to 32 x 48."""
    torch.manual_seed(0)
    model = TinyDETR(**options)
    chosen = {"image_size": (32, 48), "score_threshold": 0.0, "iou_threshold": 1.0, "target_layers": "backbone"}
    return model, detector(model, decode, **chosen)
