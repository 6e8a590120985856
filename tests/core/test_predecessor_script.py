"""The body of pytorch_grad_cam's example script ``cam.py`` runs with other import lines."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision import models

from detcam import (
    FEM,
    KPCA_CAM,
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    GuidedBackpropReLUModel,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    SegEigenCAM,
    ShapleyCAM,
    XGradCAM,
    deprocess_image,
    preprocess_image,
    show_cam_on_image,
)
from detcam.targets import ClassifierOutputReST, ClassifierOutputTarget

METHODS = {
    "gradcam": GradCAM,
    "hirescam": HiResCAM,
    "scorecam": ScoreCAM,
    "gradcam++": GradCAMPlusPlus,
    "ablationcam": AblationCAM,
    "xgradcam": XGradCAM,
    "eigencam": EigenCAM,
    "eigengradcam": EigenGradCAM,
    "layercam": LayerCAM,
    "fullgrad": FullGrad,
    "fem": FEM,
    "gradcamelementwise": GradCAMElementWise,
    "kpcacam": KPCA_CAM,
    "shapleycam": ShapleyCAM,
    "finercam": FinerCAM,
    "segeigencam": SegEigenCAM,
}


SLOW = ("ablationcam", "scorecam", "shapleycam")
"""Methods of which the plain run is enough. FullGrad refuses `eigen_smooth`, which the predecessor ignores there."""


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.resnet18(weights=None).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "smooth", "targets"),
    [pytest.param(method, False, None, id=f"plain-{method}") for method in METHODS]
    + [
        pytest.param(method, smooth, targets, id=f"{kind}-{method}")
        for kind, smooth, targets in (
            ("smooth", True, [ClassifierOutputTarget(281)]),
            ("ReST", False, [ClassifierOutputReST(281)]),
        )
        for method in METHODS
        if method not in SLOW and (kind, method) != ("smooth", "fullgrad")
    ],
)
def test_the_example_script(
    model: torch.nn.Module, method: str, smooth: bool, targets: list[ClassifierOutputTarget], tmp_path: Path
) -> None:
    image_path = str(tmp_path / "both.png")
    cv2.imwrite(image_path, np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8))

    target_layers = [model.layer3]

    rgb_img = cv2.imread(image_path, 1)[:, :, ::-1]
    rgb_img = np.float32(rgb_img) / 255
    input_tensor = preprocess_image(rgb_img, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]).to("cpu")

    cam_algorithm = METHODS[method]
    with cam_algorithm(model=model, target_layers=target_layers) as cam:
        cam.batch_size = 32
        grayscale_cam = cam(input_tensor=input_tensor, targets=targets, aug_smooth=smooth, eigen_smooth=smooth)

        grayscale_cam = grayscale_cam[0, :]

        cam_image = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
        cam_image = cv2.cvtColor(cam_image, cv2.COLOR_RGB2BGR)

    gb_model = GuidedBackpropReLUModel(model=model, device="cpu")
    gb = gb_model(input_tensor, target_category=None)

    cam_mask = cv2.merge([grayscale_cam, grayscale_cam, grayscale_cam])
    cam_gb = deprocess_image(cam_mask * gb)
    gb = deprocess_image(gb)

    for name, output in (("cam", cam_image), ("gb", gb), ("cam_gb", cam_gb)):
        assert cv2.imwrite(str(tmp_path / f"{method}_{name}.jpg"), output)
        assert output.shape == (64, 48, 3) and output.dtype == np.uint8
    assert type(grayscale_cam) is np.ndarray and grayscale_cam.dtype == np.float32
