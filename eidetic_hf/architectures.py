"""Where the units of each architecture are: one declaration per backbone `model_type`.

Names and traps were read off transformers 5.17 to 5.23. A path is exact and relative to one layer, never a suffix:
`output.dense` is also the end of `attention.output.dense`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig


class ArchitectureError(ValueError):
    """A backbone is not declared, or its declaration does not match its modules."""


@dataclass(frozen=True)
class UnitPaths:
    """The projections that share one kind of unit in a layer.

    Attributes:
        inputs: in-projections, whose rows belong to a unit (q, k and v; or an MLP's first projections).
        output: the out-projection, whose columns belong to a unit.
    """

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Architecture:
    """Where things are in one architecture.

    Attributes:
        model_type: `config.model_type` of the backbone.
        layers: path of the list of layers in the base model.
        heads: projections of the attention block. Its unit is a head.
        neurons: projections of the MLP. Its unit is a neuron.
        embeddings: path of the module, in the base model, whose output enters the first layer.
        n_heads: name of the configuration's attribute that counts attention heads.
        final_norms: paths, in the base model, of norms after the last layer.
        unused: modules of the base model that no task reads, and that are left out.
    """

    model_type: str
    layers: str
    heads: UnitPaths
    neurons: UnitPaths
    embeddings: str = "embeddings"
    n_heads: str = "num_attention_heads"
    final_norms: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


_BERT_HEADS = UnitPaths(
    inputs=("attention.self.query", "attention.self.key", "attention.self.value"), output="attention.output.dense"
)
_BERT_NEURONS = UnitPaths(inputs=("intermediate.dense",), output="output.dense")

_ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """Make backbones of `architecture.model_type` usable; a later declaration replaces an earlier one."""
    _ARCHITECTURES[architecture.model_type] = architecture


for _declaration in (
    Architecture("bert", "encoder.layer", _BERT_HEADS, _BERT_NEURONS, unused=("pooler",)),
    Architecture("roberta", "encoder.layer", _BERT_HEADS, _BERT_NEURONS, unused=("pooler",)),
    Architecture("electra", "encoder.layer", _BERT_HEADS, _BERT_NEURONS),
    Architecture(
        "distilbert",
        "transformer.layer",
        UnitPaths(inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"), output="attention.out_lin"),
        UnitPaths(inputs=("ffn.lin1",), output="ffn.lin2"),
        n_heads="n_heads",
    ),
):
    register_architecture(_declaration)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The declaration for a backbone's configuration.

    Raises:
        ArchitectureError: if its `model_type` is not declared.
    """
    if config.model_type not in _ARCHITECTURES:
        raise ArchitectureError(
            f"The architecture '{config.model_type}' is not declared; declared are {sorted(_ARCHITECTURES)}. Use a "
            "backbone of one of these, or say where its units are with "
            "eidetic_hf.architectures.register_architecture(Architecture(...))."
        )
    return _ARCHITECTURES[config.model_type]


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes hidden states: found by class, since paths differ in every architecture."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


def validate(architecture: Architecture, model: nn.Module) -> None:
    """Hold a declaration against the modules of a backbone, in every layer.

    Raises:
        ArchitectureError: naming the architecture, the role and the path that did not match.
    """

    def problem(role: str, path: str, why: str) -> ArchitectureError:
        return ArchitectureError(
            f"The declaration of '{architecture.model_type}' does not match this backbone ({type(model).__name__}): "
            f"{role} at '{path}' {why}."
        )

    try:
        layers = model.get_submodule(architecture.layers)
    except AttributeError as error:
        raise problem("the list of layers", architecture.layers, "does not exist") from error
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise problem("the list of layers", architecture.layers, "is not a non-empty ModuleList")
    try:
        model.get_submodule(architecture.embeddings)
    except AttributeError as error:
        raise problem("the embeddings", architecture.embeddings, "do not exist") from error
    for index in range(len(layers)):
        for kind, paths in (("heads", architecture.heads), ("neurons", architecture.neurons)):
            for role, path in [
                *((f"{kind} in-projection", p) for p in paths.inputs),
                (f"{kind} out-projection", paths.output),
            ]:
                full_path = f"{architecture.layers}.{index}.{path}"
                try:
                    module = layers[index].get_submodule(path)
                except AttributeError as error:
                    raise problem(role, full_path, "does not exist") from error
                if not isinstance(module, nn.Linear):
                    raise problem(role, full_path, f"is a {type(module).__name__}, expected a Linear")
        if not any(is_norm(module) for module in layers[index].modules()):
            raise problem("the norms", f"{architecture.layers}.{index}", "have none of the known classes")
