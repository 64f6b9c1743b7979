"""Tiny random backbones of every architecture."""

from __future__ import annotations

import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from eidetic_hf import EideticModel

VOCABULARY = 120
BERT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 66,
}
CONFIGS = {
    "bert": lambda: BertConfig(**BERT_LIKE),
    "roberta": lambda: RobertaConfig(**BERT_LIKE, pad_token_id=0),
    # The embedding size differs, so that ELECTRA's projection after the embeddings is there, too.
    "electra": lambda: ElectraConfig(**BERT_LIKE, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=VOCABULARY, max_position_embeddings=66
    ),
}
ARCHITECTURES = list(CONFIGS)

# Every architecture, small: three layers, four heads (two key/value heads where queries are grouped), 64 neurons.
DECODER_LIKE = {**BERT_LIKE, "num_key_value_heads": 2, "pad_token_id": 0}
GEMMA_LIKE = {**DECODER_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
DEBERTA_LIKE = {
    **BERT_LIKE,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
OPT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5_LIKE = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
ALL_CONFIGS = {
    **CONFIGS,
    "gpt2": lambda: GPT2Config(
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_inner=64,
        n_positions=66,
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": lambda: OPTConfig(**OPT_LIKE),
    "opt-projected": lambda: OPTConfig(**OPT_LIKE, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt_neox": lambda: GPTNeoXConfig(**BERT_LIKE),
    "llama": lambda: LlamaConfig(**DECODER_LIKE),
    "mistral": lambda: MistralConfig(**DECODER_LIKE, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**DECODER_LIKE),
    "qwen3": lambda: Qwen3Config(**DECODER_LIKE, head_dim=8),
    "gemma": lambda: GemmaConfig(**DECODER_LIKE, head_dim=8),
    "gemma2": lambda: Gemma2Config(**GEMMA_LIKE),
    "gemma3_text": lambda: Gemma3TextConfig(
        **GEMMA_LIKE, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "phi3": lambda: Phi3Config(**DECODER_LIKE, bos_token_id=1, eos_token_id=2),
    "deberta-v2": lambda: DebertaV2Config(**DEBERTA_LIKE, share_att_key=True),
    "deberta-v2-own-keys": lambda: DebertaV2Config(**DEBERTA_LIKE, share_att_key=False, conv_kernel_size=3),
    "modernbert": lambda: ModernBertConfig(
        **BERT_LIKE,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        local_attention=4,
        global_attn_every_n_layers=2,
    ),
    "albert": lambda: AlbertConfig(**BERT_LIKE, embedding_size=16),
    "bart": lambda: BartConfig(
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=66,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    ),
    "t5": lambda: T5Config(**T5_LIKE),
    "t5-gated": lambda: T5Config(**T5_LIKE, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def tiny_backbone(architecture: str = "bert", seed: int = 0) -> PreTrainedModel:
    """A random base model with three layers, four heads and 64 neurons a layer."""
    torch.manual_seed(seed)
    return AutoModel.from_config(ALL_CONFIGS[architecture]())


def tiny_model(architecture: str = "bert", **kwargs: object) -> EideticModel:
    """A model on such a backbone, with a trunk of one layer."""
    return EideticModel.from_backbone(tiny_backbone(architecture), **{"trunk_layers": 1, "growth": "fixed", **kwargs})
