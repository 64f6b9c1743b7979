"""Where the units of each architecture are: one declaration per backbone `model_type`.

Names and traps were read off transformers 5.17 to 5.24. A path is exact and relative to one layer, never a suffix:
`output.dense` is also the end of `attention.output.dense`.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedConfig

from .architecture import Architecture, ArchitectureError, BiasTable, Fused, Stack, UnitPaths


def _llama_like(model_type: str, **kwargs: object) -> Architecture:
    """Separate projections, grouped queries, a gated MLP and RMSNorms: most decoders since Llama."""
    architecture = Architecture(
        model_type,
        "layers",
        UnitPaths(inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), output="self_attn.o_proj"),
        UnitPaths(inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),
        n_heads="num_key_value_heads",
        head_dim="head_dim",
        final_norms=("norm",),
    )
    return replace(architecture, **kwargs)  # type: ignore[arg-type]


def _bart_attention(path: str) -> UnitPaths:
    return UnitPaths(inputs=(f"{path}.q_proj", f"{path}.k_proj", f"{path}.v_proj"), output=f"{path}.out_proj")


def _t5_attention(path: str, table: bool) -> UnitPaths:
    return UnitPaths(
        inputs=(f"{path}.q", f"{path}.k", f"{path}.v"),
        output=f"{path}.o",
        counts=(f"{path}.n_heads",),
        ignores=(f"{path}.position_bias",),
        table=BiasTable(f"{path}.relative_attention_bias", "has_relative_attention_bias") if table else None,
    )


def _t5_neurons(path: str) -> UnitPaths:
    return UnitPaths(optional=(f"{path}.wi", f"{path}.wi_0", f"{path}.wi_1"), output=f"{path}.wo")


_BERT_HEADS = UnitPaths(
    inputs=("attention.self.query", "attention.self.key", "attention.self.value"), output="attention.output.dense"
)
_BERT_NEURONS = UnitPaths(inputs=("intermediate.dense",), output="output.dense")

_BART_NEURONS = UnitPaths(inputs=("fc1",), output="fc2")

_ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """Make backbones of `architecture.model_type` usable; a later declaration replaces an earlier one."""
    _ARCHITECTURES[architecture.model_type] = architecture


for _declaration in (
    Architecture("bert", "encoder.layer", _BERT_HEADS, _BERT_NEURONS, embeddings="embeddings", unused=("pooler",)),
    Architecture("roberta", "encoder.layer", _BERT_HEADS, _BERT_NEURONS, embeddings="embeddings", unused=("pooler",)),
    Architecture("electra", "encoder.layer", _BERT_HEADS, _BERT_NEURONS, embeddings="embeddings"),
    Architecture(
        "distilbert",
        "transformer.layer",
        UnitPaths(inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"), output="attention.out_lin"),
        UnitPaths(inputs=("ffn.lin1",), output="ffn.lin2"),
        embeddings="embeddings",
        n_heads="n_heads",
        n_neurons="hidden_dim",
    ),
    Architecture(
        "gpt2",
        "h",
        UnitPaths(inputs=(Fused("attn.c_attn", (1, 1, 1)),), output="attn.c_proj", counts=("attn.split_size",)),
        UnitPaths(inputs=("mlp.c_fc",), output="mlp.c_proj"),
        n_neurons="n_inner",
        final_norms=("ln_f",),
    ),
    Architecture(
        "opt",
        "decoder.layers",
        UnitPaths(
            inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output="self_attn.out_proj",
            counts=("self_attn.num_heads",),
        ),
        UnitPaths(inputs=("fc1",), output="fc2"),
        n_neurons="ffn_dim",
        final_norms=("decoder.final_layer_norm",),
    ),
    Architecture(
        "gpt_neox",
        "layers",
        UnitPaths(inputs=("attention.query_key_value",), output="attention.dense"),
        UnitPaths(inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h"),
        final_norms=("final_layer_norm",),
    ),
    *map(_llama_like, ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")),
    _llama_like(
        "phi3",
        heads=UnitPaths(
            inputs=(
                Fused("self_attn.qkv_proj", ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")),
            ),
            output="self_attn.o_proj",
            counts=("self_attn.config.num_attention_heads", "self_attn.num_key_value_heads"),
        ),
        neurons=UnitPaths(inputs=(Fused("mlp.gate_up_proj", (1, 1)),), output="mlp.down_proj"),
    ),
    Architecture(
        "deberta-v2",
        "encoder.layer",
        UnitPaths(
            inputs=tuple(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
            output="attention.output.dense",
            optional=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            counts=("attention.self.num_attention_heads",),
        ),
        _BERT_NEURONS,
        shares_positions=True,
    ),
    Architecture(
        "modernbert",
        "layers",
        UnitPaths(inputs=(Fused("attn.Wqkv", (1, 1, 1)),), output="attn.Wo"),
        UnitPaths(inputs=(Fused("mlp.Wi", (1, 1)),), output="mlp.Wo"),
        final_norms=("final_norm",),
    ),
    Architecture(
        "albert",
        "encoder.albert_layer_groups",
        UnitPaths(
            inputs=tuple(f"albert_layers.0.attention.{name}" for name in ("query", "key", "value")),
            output="albert_layers.0.attention.dense",
        ),
        UnitPaths(inputs=("albert_layers.0.ffn",), output="albert_layers.0.ffn_output"),
        unused=("pooler",),
        repeats_layers=True,
    ),
    Architecture(
        "bart",
        "encoder.layers",
        _bart_attention("self_attn"),
        _BART_NEURONS,
        n_heads="encoder_attention_heads",
        n_neurons="encoder_ffn_dim",
        decoder=Stack(
            "decoder.layers",
            _bart_attention("self_attn"),
            _BART_NEURONS,
            cross_heads=_bart_attention("encoder_attn"),
            n_heads="decoder_attention_heads",
            n_neurons="decoder_ffn_dim",
        ),
    ),
    Architecture(
        "t5",
        "encoder.block",
        _t5_attention("layer.0.SelfAttention", table=True),
        _t5_neurons("layer.1.DenseReluDense"),
        n_heads="num_heads",
        n_neurons="d_ff",
        head_dim="d_kv",
        plain_type="umt5",
        final_norms=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        decoder=Stack(
            "decoder.block",
            _t5_attention("layer.0.SelfAttention", table=True),
            _t5_neurons("layer.2.DenseReluDense"),
            cross_heads=_t5_attention("layer.1.EncDecAttention", table=False),
            n_heads="num_heads",
            n_neurons="d_ff",
        ),
    ),
):
    register_architecture(_declaration)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The declaration for a backbone's configuration: registered, or derived from its plan for tensor parallelism.

    Raises:
        ArchitectureError: if its `model_type` is not declared, and nothing can be derived.
    """
    return _ARCHITECTURES.get(config.model_type) or _derived(config)


def is_declared(config: PreTrainedConfig) -> bool:
    """Whether a declaration is registered for a backbone's configuration."""
    return config.model_type in _ARCHITECTURES


def _derived(config: PreTrainedConfig) -> Architecture:
    """A declaration from a configuration's `base_model_tp_plan`.

    The plan splits a layer over devices by its heads and neurons: in-projections column-wise, out-projections
    row-wise. A module that it has to gather before the layer's code goes on is one whose code does not run on fewer.
    """
    plan = getattr(config, "base_model_tp_plan", None) or {}
    blocks: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, style in plan.items():
        layers, star, path = name.partition(".*.")
        if not star or style.startswith("replicated"):
            continue
        if style not in ("colwise", "rowwise"):
            raise _not_declared(config, f"its tensor-parallel plan treats {name} as {style!r}")
        block, _, _ = path.rpartition(".")
        blocks.setdefault((layers, block), {}).setdefault(style, []).append(path)
    if not blocks:
        raise _not_declared(config, "its configuration has no tensor-parallel plan to derive it from")
    layers = next(iter(blocks))[0]
    units = {}
    for (stack, block), styles in blocks.items():
        kind = "heads" if "attn" in block or "attention" in block else "neurons"
        if stack != layers or kind in units or not styles.get("colwise") or len(styles.get("rowwise", ())) != 1:
            raise _not_declared(
                config, f"its tensor-parallel plan has no simple pair of projections in {stack}.*.{block}"
            )
        units[kind] = UnitPaths(inputs=tuple(styles["colwise"]), output=styles["rowwise"][0])
    if set(units) != {"heads", "neurons"}:
        raise _not_declared(config, f"its tensor-parallel plan has {sorted(units)} only")
    pipeline = list(getattr(config, "base_model_pp_plan", None) or {})
    behind = pipeline[pipeline.index(layers) + 1 :] if layers in pipeline else []
    return Architecture(
        config.model_type,
        layers,
        units["heads"],
        units["neurons"],
        n_heads="num_key_value_heads" if getattr(config, "num_key_value_heads", None) else "num_attention_heads",
        final_norms=tuple(name for name in behind if "norm" in name or "ln" in name),
    )


def _not_declared(config: PreTrainedConfig, why: str) -> ArchitectureError:
    return ArchitectureError(
        f"The architecture '{config.model_type}' is not declared; declared are {sorted(_ARCHITECTURES)}. It can not "
        f"be derived, either: {why}. Use a backbone of one of these, or say where its units are with "
        "eidetic_hf.register_architecture, in paths relative to one layer (docs/architectures.md):\n\n"
        "    from eidetic_hf import Architecture, UnitPaths, register_architecture\n\n"
        "    register_architecture(Architecture(\n"
        f'        model_type={config.model_type!r}, layers="layers",\n'
        '        heads=UnitPaths(inputs=("attn.q", "attn.k", "attn.v"), output="attn.o"),\n'
        '        neurons=UnitPaths(inputs=("mlp.up",), output="mlp.down"),\n'
        '        n_heads="num_attention_heads", final_norms=("norm",),\n'
        "    ))"
    )
