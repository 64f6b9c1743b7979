"""What a declaration of an architecture is, and how it is held against a backbone's modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
        n_neurons: name of the configuration's attribute that counts the neurons of a layer.
    """

    layers: str
    heads: UnitPaths
    neurons: UnitPaths
    cross_heads: UnitPaths | None = None
    n_heads: str = "num_attention_heads"
    n_neurons: str = "intermediate_size"

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
        n_neurons: name of the configuration's attribute that counts neurons (see `Stack`).
        head_dim: name of the configuration's attribute that says how wide a head is, where that does not follow from
            the number of heads; `None` where it does.
        plain_type: `config.model_type` of the same architecture with a table of position biases in every layer, which
            a task that was taken out needs; `None` where the backbone's own class has room for all of it.
        shares_positions: whether projections read positions that are the same for all sequences, without a dimension
            for these (DeBERTa): then no batch of several tasks is computed side by side.
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
    n_neurons: str = "intermediate_size"
    head_dim: str | None = None
    plain_type: str | None = None
    shares_positions: bool = False

    @property
    def stacks(self) -> dict[str, Stack]:
        """The lists of layers by the name that their unit groups begin with; the trunk lies in the first."""
        stacks = {LAYERS: Stack(self.layers, self.heads, self.neurons, None, self.n_heads, self.n_neurons)}
        if self.decoder is not None:
            stacks[DECODER_LAYERS] = self.decoder
        return stacks


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


def in_projections(
    layer: nn.Module, paths: UnitPaths, config: PreTrainedConfig
) -> Iterator[tuple[str | Fused, list[tuple[Tensor, Tensor | None]]]]:
    """The in-projections of one kind of unit that a layer has.

    Args:
        layer: with a backbone's own modules.
        paths: where they are.
        config: of the backbone.

    Returns:
        Each with its weight, `(out_features, in_features)`, and bias; several of a module that computes several. They
        are views of the layer's own tensors.
    """
    for entry in (*paths.inputs, *paths.optional):
        projection = find(layer, entry.path if isinstance(entry, Fused) else entry)
        if projection is None:
            continue
        weight, bias = weight_and_bias(projection)
        sizes = entry.sizes(config, len(weight)) if isinstance(entry, Fused) else [len(weight)]
        biases = [None] * len(sizes) if bias is None else bias.split(sizes)
        yield entry, list(zip(weight.split(sizes), biases, strict=True))


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
