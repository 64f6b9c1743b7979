"""Where the units of each architecture are: one declaration per backbone `model_type`.

Names and traps were read off transformers 5.17 to 5.24. A path is exact and relative to one layer, never a suffix:
`output.dense` is also the end of `attention.output.dense`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

LAYERS, DECODER_LAYERS = "layers", "decoder_layers"


class ArchitectureError(ValueError):
    """A backbone is not declared, or its declaration does not match its modules."""


@dataclass(frozen=True)
class Fused:
    """One module that computes several in-projections at once, one after another along its output.

    A module whose output interleaves them head by head (GPT-NeoX) needs none of this: there the rows of one head are
    contiguous, and it is declared by its path alone.

    Attributes:
        path: of the module.
        parts: their sizes in proportion: numbers, or names of attributes of the configuration. `(1, 1, 1)` for q, k
            and v of equal size; `("num_attention_heads", "num_key_value_heads", "num_key_value_heads")` for grouped
            queries; `(1, 1)` for the two halves of a gated MLP.
    """

    path: str
    parts: tuple[int | str, ...]

    def sizes(self, config: PreTrainedConfig, features: int) -> list[int]:
        """How many of `features` output features belong to each part."""
        shares = [part if isinstance(part, int) else int(getattr(config, part)) for part in self.parts]
        return [features * share // sum(shares) for share in shares]


@dataclass(frozen=True)
class BiasTable:
    """A table of relative position biases, one column per head, which the first layer holds for all layers (T5).

    Each layer above the trunk gets its own copy, whose columns belong to its heads like their rows of q, k and v: so
    layers may see different heads, and a task learns its own biases.

    Attributes:
        path: of the `nn.Embedding`, `(buckets, heads)`, in the first layer.
        flag: attribute of the module around it that says whether it holds a table.
    """

    path: str
    flag: str


@dataclass(frozen=True)
class UnitPaths:
    """The projections that share one kind of unit in a layer.

    Attributes:
        inputs: in-projections, whose rows belong to a unit (q, k and v; or an MLP's first projections).
        output: the out-projection, whose columns belong to a unit.
        optional: further in-projections, which some models of the type have.
        counts: attributes that count heads, or features of heads, and that the module's code relies on; they follow
            the number of heads that are seen. The path ends in the attribute's name: `attn.split_size`.
        ignores: arguments that a layer hands on to the next and that depend on its heads, so that the next one must
            not take them: `layer.0.SelfAttention.position_bias`.
        table: relative position biases of the heads.
    """

    inputs: tuple[str | Fused, ...] = ()
    output: str = ""
    optional: tuple[str | Fused, ...] = ()
    counts: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    table: BiasTable | None = None


@dataclass(frozen=True)
class Stack:
    """A list of layers that are alike, and the units in each.

    Attributes:
        layers: path of the list in the base model.
        heads: projections of the self-attention block. Its unit is a head; with grouped queries, a key/value head
            with all its query heads.
        neurons: projections of the MLP. Its unit is a neuron.
        cross_heads: projections of the attention to an encoder.
        n_heads: name of the configuration's attribute that counts heads (key/value heads with grouped queries).
    """

    layers: str
    heads: UnitPaths
    neurons: UnitPaths
    cross_heads: UnitPaths | None = None
    n_heads: str = "num_attention_heads"

    @property
    def kinds(self) -> dict[str, UnitPaths]:
        """The unit kinds of a layer, in the order in which it computes them."""
        kinds = {"heads": self.heads, "cross_heads": self.cross_heads, "neurons": self.neurons}
        return {kind: paths for kind, paths in kinds.items() if paths is not None}


@dataclass(frozen=True)
class Architecture:
    """Where things are in one architecture.

    Attributes:
        model_type: `config.model_type` of the backbone.
        layers: path of the list of layers in the base model; of the encoder's, if there is a decoder, too.
        heads: projections of the attention block (see `Stack`).
        neurons: projections of the MLP.
        embeddings: path of the module, in the base model, whose output is the embeddings that the router reads; what
            enters the first layer if not given.
        n_heads: name of the configuration's attribute that counts heads (see `Stack`).
        final_norms: paths, in the base model, of norms after the last layer; a model may set one to `None`.
        unused: modules of the base model that no task reads, and that are left out.
        decoder: the decoder's layers in an encoder-decoder.
        shared: paths in a layer of parameters that stay at their pretrained values, for every task.
        repeats_layers: whether the model runs the same layer several times (ALBERT).
    """

    model_type: str
    layers: str
    heads: UnitPaths
    neurons: UnitPaths
    embeddings: str | None = None
    n_heads: str = "num_attention_heads"
    final_norms: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    decoder: Stack | None = None
    shared: tuple[str, ...] = ()
    repeats_layers: bool = False

    @property
    def stacks(self) -> dict[str, Stack]:
        """The lists of layers by the name that their unit groups begin with; the trunk lies in the first."""
        stacks = {LAYERS: Stack(self.layers, self.heads, self.neurons, None, self.n_heads)}
        if self.decoder is not None:
            stacks[DECODER_LAYERS] = self.decoder
        return stacks


def _llama_like(model_type: str, **kwargs: object) -> Architecture:
    """Separate projections, grouped queries, a gated MLP and RMSNorms: most decoders since Llama."""
    architecture = Architecture(
        model_type,
        "layers",
        UnitPaths(inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), output="self_attn.o_proj"),
        UnitPaths(inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),
        n_heads="num_key_value_heads",
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
    ),
    Architecture(
        "gpt2",
        "h",
        UnitPaths(inputs=(Fused("attn.c_attn", (1, 1, 1)),), output="attn.c_proj", counts=("attn.split_size",)),
        UnitPaths(inputs=("mlp.c_fc",), output="mlp.c_proj"),
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
        decoder=Stack(
            "decoder.layers",
            _bart_attention("self_attn"),
            _BART_NEURONS,
            cross_heads=_bart_attention("encoder_attn"),
            n_heads="decoder_attention_heads",
        ),
    ),
    Architecture(
        "t5",
        "encoder.block",
        _t5_attention("layer.0.SelfAttention", table=True),
        _t5_neurons("layer.1.DenseReluDense"),
        n_heads="num_heads",
        final_norms=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        decoder=Stack(
            "decoder.block",
            _t5_attention("layer.0.SelfAttention", table=True),
            _t5_neurons("layer.2.DenseReluDense"),
            cross_heads=_t5_attention("layer.1.EncDecAttention", table=False),
            n_heads="num_heads",
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


def choose_trunk(architecture: Architecture, depth: int, trunk_layers: int | None) -> int:
    """Number of layers that stay at their pretrained values; a third of the depth by default.

    Args:
        architecture: of the backbone.
        depth: number of its layers; an encoder's, if there is a decoder, too.
        trunk_layers: what was asked for.

    Raises:
        ValueError: if it is out of range.
    """
    if architecture.repeats_layers and trunk_layers not in (None, 0):
        raise ValueError(
            f"trunk_layers={trunk_layers!r}: {architecture.model_type} runs the same layer at every depth, so a layer "
            "that tasks learn is also the first one, and none can stay at its pretrained values. Only trunk_layers=0 "
            "works: the trunk is the embeddings."
        )
    if trunk_layers is None:
        return 0 if architecture.repeats_layers else depth // 3
    if not isinstance(trunk_layers, int) or not 0 <= trunk_layers < depth:
        raise ValueError(
            f"trunk_layers={trunk_layers!r}: the backbone has {depth} layers, so expected a number from 0 to "
            f"{depth - 1}; the layers above the trunk are what tasks learn."
        )
    return trunk_layers


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes hidden states: found by class, since paths differ in every architecture."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


def is_projection(module: object) -> bool:
    """Whether a module is a plain matrix product, with or without a bias."""
    return isinstance(module, (nn.Linear, Conv1D))


def weight_and_bias(projection: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight, `(out_features, in_features)`, and bias of a projection; `Conv1D` stores its weight transposed."""
    weight, bias = projection.weight, projection.bias
    return (weight.t() if isinstance(projection, Conv1D) else weight), bias  # type: ignore[return-value, operator]


def find(root: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or `None` where the model leaves it out: it is not there, or is `None`."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def n_units(stack: Stack, kind: str, layer: nn.Module, config: PreTrainedConfig) -> int:
    """Number of units of one kind in a layer."""
    paths = stack.kinds[kind]
    if kind == "neurons":
        return weight_and_bias(layer.get_submodule(paths.output))[0].shape[1]
    return getattr(config, stack.n_heads, None) or config.num_attention_heads


def layers_of(architecture: Architecture, model: nn.Module) -> nn.ModuleList:
    """The list of layers that the trunk's are the first of, after the declaration was held against the model.

    Raises:
        ArchitectureError: naming the architecture, the role and the path that did not match.
    """
    _Validation(architecture, model).run()
    return model.get_submodule(architecture.layers)  # type: ignore[return-value]


class _Validation:
    """Holds a declaration against the modules of a backbone, in every layer."""

    def __init__(self, architecture: Architecture, model: nn.Module) -> None:
        self.architecture = architecture
        self.model = model
        self.config: PreTrainedConfig = model.config  # type: ignore[assignment]

    def problem(self, role: str, path: str, why: str) -> ArchitectureError:
        return ArchitectureError(
            f"The declaration of '{self.architecture.model_type}' does not match this backbone "
            f"({type(self.model).__name__}): {role} at '{path}' {why}."
        )

    def run(self) -> None:
        if self.architecture.embeddings is not None and find(self.model, self.architecture.embeddings) is None:
            raise self.problem("the embeddings", self.architecture.embeddings, "do not exist")
        for path in self.architecture.final_norms:
            self.final_norm(path)
        for stack in self.architecture.stacks.values():
            layers = find(self.model, stack.layers)
            if layers is None:
                raise self.problem("the list of layers", stack.layers, "does not exist")
            if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
                raise self.problem("the list of layers", stack.layers, "is not a non-empty ModuleList")
            for index, layer in enumerate(layers):
                for kind in stack.kinds:
                    self.units(stack, kind, layer, f"{stack.layers}.{index}")
                if not any(is_norm(module) for module in layer.modules()):
                    raise self.problem("the norms", f"{stack.layers}.{index}", "have none of the known classes")

    def final_norm(self, path: str) -> None:
        parent, _, name = path.rpartition(".")
        owner = find(self.model, parent)
        if owner is None or not hasattr(owner, name):
            raise self.problem("the final norm", path, "does not exist")

    def units(self, stack: Stack, kind: str, layer: nn.Module, where: str) -> None:
        paths = stack.kinds[kind]
        output = self.projection(layer, paths.output, f"{kind} out-projection", where)
        units = n_units(stack, kind, layer, self.config)
        self.divisible(output.shape[1], units, f"{kind} out-projection", f"{where}.{paths.output}")
        found = 0
        for entry in (*paths.inputs, *paths.optional):
            path = entry.path if isinstance(entry, Fused) else entry
            if entry in paths.optional and find(layer, path) is None:
                continue
            found += 1
            rows = self.projection(layer, path, f"{kind} in-projection", where).shape[0]
            for size in entry.sizes(self.config, rows) if isinstance(entry, Fused) else [rows]:
                self.divisible(size, units, f"{kind} in-projection", f"{where}.{path}")
        if not found:
            names = ", ".join(str(entry) for entry in paths.optional)
            raise self.problem(f"{kind} in-projection", where, f"does not exist (expected one of {names})")
        for count in paths.counts:
            self.count(layer, count, units, kind, where)

    def projection(self, layer: nn.Module, path: str, role: str, where: str) -> Tensor:
        module = find(layer, path)
        if module is None:
            raise self.problem(role, f"{where}.{path}", "does not exist")
        if not is_projection(module):
            raise self.problem(role, f"{where}.{path}", f"is a {type(module).__name__}, expected a Linear or a Conv1D")
        return weight_and_bias(module)[0]

    def divisible(self, features: int, units: int, role: str, path: str) -> None:
        if features % units:
            raise self.problem(role, path, f"has {features} features, which {units} units can not share evenly")

    def count(self, layer: nn.Module, path: str, units: int, kind: str, where: str) -> None:
        value: object = layer
        for name in path.split("."):
            value = getattr(value, name, None)
        if not isinstance(value, int):
            raise self.problem(f"the count of {kind}", f"{where}.{path}", f"is {value!r}, expected a number")
        self.divisible(value, units, f"the count of {kind}", f"{where}.{path}")


def leftovers(architecture: Architecture, layer: nn.Module) -> Iterator[str]:
    """Names of a wired layer's parameters that neither a task owns nor the declaration calls shared."""
    for name, _ in layer.named_parameters():
        if not any(name == path or name.startswith(f"{path}.") for path in architecture.shared):
            yield name
