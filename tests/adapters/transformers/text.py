"""Small models of transformers that read text, with tokenizers whose vocabularies are written here."""

from __future__ import annotations

import string
from typing import Any

from tests.adapters.transformers.detectors import image_processor, pyramid, seeded

WORDS = ("a", "small", "red", "boat", "buoy", "gull", "##s", "on", "water")
TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION: dict[str, Any] = {**TEXT, "num_hidden_layers": 2, "image_size": 64, "patch_size": 16}


def bert_tokenizer() -> Any:
    """WordPiece with the numbers of BERT's special tokens, on which Grounding DINO relies."""
    from transformers import BertTokenizer

    vocabulary = {f"[unused{index}]": index for index in range(1100)}
    named = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    named |= {word: 1040 + index for index, word in enumerate(WORDS)}
    vocabulary = {token: index for token, index in vocabulary.items() if index not in named.values()} | named
    return BertTokenizer(vocab=dict(sorted(vocabulary.items(), key=lambda item: item[1])))


def clip_tokenizer() -> Any:
    """Byte pairs of single letters, with merges that make whole words of a few."""
    from transformers import CLIPTokenizer

    letters = ["!", *string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    merges = [("b", "o"), ("a", "t</w>"), ("bo", "at</w>"), ("r", "e"), ("re", "d</w>")]
    tokens = [*letters, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=16)


def clip_text_config() -> dict[str, Any]:
    tokenizer = clip_tokenizer()
    return {
        **TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }


def grounding_dino(kind: str = "GroundingDino") -> tuple[Any, Any]:
    """The model and its processor."""
    import transformers as tf

    text = tf.BertConfig(**TEXT, vocab_size=1100, max_position_embeddings=64)
    sizes: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_queries": 7,
        "num_feature_levels": 3,
        "max_text_len": 32,
    }
    config = getattr(tf, f"{kind}Config")(backbone_config=pyramid(), text_config=text, **sizes)
    model = seeded(lambda: getattr(tf, f"{kind}ForObjectDetection")(config))
    return model, tf.GroundingDinoProcessor(image_processor("GroundingDino"), bert_tokenizer())


def owl(kind: str = "OwlViT") -> tuple[Any, Any]:
    """The model and its processor."""
    import transformers as tf

    config = getattr(tf, f"{kind}Config")(text_config=clip_text_config(), vision_config=VISION, projection_dim=16)
    model = seeded(lambda: getattr(tf, f"{kind}ForObjectDetection")(config))
    processor = getattr(tf, f"{kind}Processor")(image_processor(kind, 64, 64), clip_tokenizer())
    return model, processor


OPEN_VOCABULARY: dict[str, Any] = {
    "grounding_dino": grounding_dino,
    "mm_grounding_dino": lambda: grounding_dino("MMGroundingDino"),
    "owlvit": owl,
    "owlv2": lambda: owl("Owlv2"),
}
