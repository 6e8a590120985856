"""Small models of transformers with seeded weights, built from configurations without downloads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NAMES = {0: "boat", 1: "buoy", 2: "gull"}

DECODER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
SIZES: dict[str, Any] = {"num_queries": 7, "id2label": NAMES}


def seeded(build: Callable[[], nn.Module], seed: int = 1, spread: float = 0.3) -> Any:
    """Build a model with weights that depend on the seed alone and noise that makes its queries differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn(parameter.shape))
    return model.eval()


def resnet() -> Any:
    """The configuration of a ResNet of 4 stages with 8 channels each."""
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )


def pyramid() -> Any:
    """As `resnet`, with the maps of three stages."""
    config = resnet()
    config.out_features = ["stage2", "stage3", "stage4"]
    return config


def detr(kind: str, **options: Any) -> Any:
    import transformers as tf

    config = getattr(tf, f"{kind}Config")
    backbone: dict[str, Any] = {
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
        "backbone_config": resnet(),
    }
    return seeded(
        lambda: getattr(tf, f"{kind}ForObjectDetection")(config(**{**backbone, **DECODER, **SIZES, **options}))
    )


def deformable_detr(**options: Any) -> Any:
    return detr("DeformableDetr", d_model=32, backbone_config=pyramid(), num_feature_levels=3, **options)


def hgnet(out_features: list[str]) -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        stem_channels=[3, 4, 8],
        stage_in_channels=[8, 8, 8, 8],
        stage_mid_channels=[4, 4, 4, 4],
        stage_out_channels=[8, 8, 8, 8],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=out_features,
    )


def hybrid(kind: str, **options: Any) -> Any:
    """RT-DETR and its descendants."""
    import transformers as tf

    channels = [8, 8, 8]
    residual = tf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=channels + [8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    backbone = residual if kind in ("RTDetr", "RTDetrV2") else hgnet(["stage2", "stage3", "stage4"])
    sizes: dict[str, Any] = {
        "d_model": 16,
        "encoder_hidden_dim": 16,
        "encoder_in_channels": channels,
        "encoder_ffn_dim": 24,
        "encoder_attention_heads": 2,
        "decoder_in_channels": [16, 16, 16],
        "decoder_ffn_dim": 24,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "hidden_expansion": 0.5,
        "num_queries": 7,
        "backbone_config": backbone,
        "id2label": NAMES,
        "anchor_image_size": None,
    }
    config = getattr(tf, f"{kind}Config")
    return seeded(lambda: getattr(tf, f"{kind}ForObjectDetection")(config(**{**sizes, **options})))


def yolos() -> Any:
    import transformers as tf

    return seeded(
        lambda: tf.YolosForObjectDetection(
            tf.YolosConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                image_size=[64, 96],
                patch_size=16,
                num_detection_tokens=7,
                id2label=NAMES,
            )
        )
    )


LIGHT: dict[str, Any] = {
    "d_model": 16,
    "decoder_ffn_dim": 24,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_n_points": 2,
    "num_queries": 7,
    "group_detr": 1,
    "c2f_num_blocks": 1,
    "id2label": NAMES,
}


def lw_detr() -> Any:
    import transformers as tf

    backbone = tf.LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    return seeded(
        lambda: tf.LwDetrForObjectDetection(
            tf.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **LIGHT)
        )
    )


def rf_detr_config() -> Any:
    import transformers as tf

    backbone = tf.RfDetrDinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=64,
        patch_size=16,
        num_windows=2,
        out_indices=[1, 2],
    )
    return tf.RfDetrConfig(backbone_config=backbone, intermediate_size=32, mask_downsample_ratio=4, **LIGHT)


def rf_detr() -> Any:
    import transformers as tf

    return seeded(lambda: tf.RfDetrForObjectDetection(rf_detr_config()))


def pp_doclayout_v3() -> Any:
    sizes: dict[str, Any] = {"x4_feat_dim": 8, "mask_feature_channels": [8, 8], "num_prototypes": 4}
    return hybrid(
        "PPDocLayoutV3",
        backbone_config=hgnet(["stage1", "stage2", "stage3", "stage4"]),
        global_pointer_head_size=8,
        **sizes,
    )


def pp_doclayout_v2() -> Any:
    order: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "coordinate_size": 3,
        "shape_size": 2,
        "num_classes": 3,
        "relation_bias_embed_dim": 4,
        "global_pointer_head_size": 8,
    }
    thresholds = {"class_thresholds": [0.0] * 3, "class_order": [0, 1, 2]}
    return hybrid("PPDocLayoutV2", reading_order_config=order, **thresholds)


DETECTORS: dict[str, Callable[[], Any]] = {
    "detr": functools.partial(detr, "Detr"),
    "conditional_detr": functools.partial(detr, "ConditionalDetr"),
    "table_transformer": functools.partial(detr, "TableTransformer"),
    "dab_detr": functools.partial(detr, "DabDetr", hidden_size=16),
    "deformable_detr": deformable_detr,
    "deformable_detr_two_stage": functools.partial(
        deformable_detr, two_stage=True, with_box_refine=True, two_stage_num_proposals=7
    ),
    "rt_detr": functools.partial(hybrid, "RTDetr"),
    "rt_detr_v2": functools.partial(hybrid, "RTDetrV2"),
    "d_fine": functools.partial(hybrid, "DFine"),
    "deimv2": functools.partial(hybrid, "Deimv2"),
    "pp_doclayout_v2": pp_doclayout_v2,
    "pp_doclayout_v3": pp_doclayout_v3,
    "pp_doclayout_v4": functools.partial(hybrid, "PPDocLayoutV4"),
    "lw_detr": lw_detr,
    "rf_detr": rf_detr,
    "yolos": yolos,
}


PROCESSORS: dict[str, str] = {
    "detr": "Detr",
    "table_transformer": "Detr",
    "conditional_detr": "ConditionalDetr",
    "dab_detr": "ConditionalDetr",
    "deformable_detr": "DeformableDetr",
    "deformable_detr_two_stage": "DeformableDetr",
    "lw_detr": "DeformableDetr",
    "rf_detr": "RfDetr",
    "yolos": "Yolos",
    "pp_doclayout_v2": "PPDocLayoutV2",
    "pp_doclayout_v3": "PPDocLayoutV3",
    "pp_doclayout_v4": "PPDocLayoutV4",
}
"""Image processors of the detectors; those of the others are RT-DETR's."""


def image_processor(kind: str, height: int = 64, width: int = 96, **options: Any) -> Any:
    """An image processor that stretches images to one size."""
    import transformers as tf

    return getattr(tf, f"{kind}ImageProcessor")(size={"height": height, "width": width}, **options)


@functools.cache
def detector_adapter(name: str) -> Any:
    """The adapter of a detector for inputs of 64 x 96, which reports every query."""
    from detcam.adapters import adapt

    processor = image_processor(PROCESSORS.get(name, "RTDetr"))
    return adapt(DETECTORS[name](), processor=processor, score_threshold=0.0)
