"""Small segmentation networks of transformers with seeded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.adapters.transformers.detectors import NAMES, pyramid, resnet, rf_detr_config, seeded

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 64,
    "patch_size": 16,
    "id2label": NAMES,
}


def segformer() -> Any:
    import transformers as tf

    sizes: dict[str, Any] = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
    config = tf.SegformerConfig(**sizes, mlp_ratios=[2] * 4, decoder_hidden_size=16, id2label=NAMES)
    return seeded(lambda: tf.SegformerForSemanticSegmentation(config), seed=3)


def upernet() -> Any:
    import transformers as tf

    backbone = resnet()
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = tf.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        auxiliary_in_channels=8,
        id2label=NAMES,
    )
    return seeded(lambda: tf.UperNetForSemanticSegmentation(config))


def dpt() -> Any:
    import transformers as tf

    sizes: dict[str, Any] = {
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "backbone_out_indices": [0, 1, 2, 3],
    }
    config = tf.DPTConfig(**VIT, **sizes, use_auxiliary_head=False)
    return seeded(lambda: tf.DPTForSemanticSegmentation(config))


def beit(kind: str = "Beit") -> Any:
    import transformers as tf

    options: dict[str, Any] = {"out_indices": [1, 2, 3, 4], "use_auxiliary_head": False, "pool_scales": [1, 2]}
    config = getattr(tf, f"{kind}Config")(**VIT, **options)
    return seeded(lambda: getattr(tf, f"{kind}ForSemanticSegmentation")(config))


def mobilevit() -> Any:
    import transformers as tf

    config = tf.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        mlp_ratio=1.0,
        expand_ratio=1.0,
        aspp_out_channels=8,
        id2label=NAMES,
    )
    return seeded(lambda: tf.MobileViTForSemanticSegmentation(config))


def mobilenet_v2() -> Any:
    import transformers as tf

    config = tf.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, image_size=64, id2label=NAMES)
    return seeded(lambda: tf.MobileNetV2ForSemanticSegmentation(config), seed=4)


def mask2former() -> Any:
    import transformers as tf

    backbone = resnet()
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = tf.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=24,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=24,
        num_queries=7,
        id2label=NAMES,
    )
    return seeded(lambda: tf.Mask2FormerForUniversalSegmentation(config), seed=4)


def maskformer() -> Any:
    import transformers as tf

    backbone = resnet()
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    decoder = tf.DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=7,
        use_timm_backbone=False,
        backbone_config=resnet(),
    )
    config = tf.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, id2label=NAMES
    )
    return seeded(lambda: tf.MaskFormerForInstanceSegmentation(config), seed=5)


def eomt() -> Any:
    import transformers as tf

    config = tf.EomtConfig(**{**VIT, "num_hidden_layers": 3}, num_blocks=1, num_queries=7, num_upscale_blocks=1)
    return seeded(lambda: tf.EomtForUniversalSegmentation(config), seed=3, spread=0.6)


def detr_panoptic() -> Any:
    import transformers as tf

    from tests.adapters.transformers.detectors import DECODER, SIZES

    backbone = pyramid()
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = tf.DetrConfig(
        **{**DECODER, "d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
        **SIZES,
        use_timm_backbone=False,
        backbone=None,
        backbone_config=backbone,
    )
    return seeded(lambda: tf.DetrForSegmentation(config), seed=7, spread=0.2)


def rf_detr_masks() -> Any:
    import transformers as tf

    return seeded(lambda: tf.RfDetrForInstanceSegmentation(rf_detr_config()))


def oneformer() -> Any:
    import transformers as tf

    from tests.adapters.transformers.text import clip_tokenizer

    backbone = resnet()
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = tf.OneFormerConfig(
        backbone_config=backbone,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=24,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=24,
        num_queries=7,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=len(clip_tokenizer()),
        task_seq_len=16,
        id2label=NAMES,
    )
    return seeded(lambda: tf.OneFormerForUniversalSegmentation(config), seed=6)


SEMANTIC: dict[str, Callable[[], Any]] = {
    "segformer": segformer,
    "upernet": upernet,
    "dpt": dpt,
    "beit": beit,
    "data2vec": lambda: beit("Data2VecVision"),
    "mobilevit": mobilevit,
    "mobilenet_v2": mobilenet_v2,
}

MASK_QUERIES: dict[str, Callable[[], Any]] = {
    "mask2former": mask2former,
    "maskformer": maskformer,
    "oneformer": oneformer,
    "eomt": eomt,
    "detr_panoptic": detr_panoptic,
}
