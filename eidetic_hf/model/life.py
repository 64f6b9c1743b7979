"""The life of a task: added, begun, committed or abandoned; and room for the next ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional

from ..configuration import SEQUENCE_CLASSIFICATION, TaskError, TaskRecord, check_task_name
from ..kinds import check_kind, kind_of
from ..network.backbone import DECODER, family_of
from ..network.network import MODEL_INPUTS
from ..network.storage import freeze, thaw
from ..network.units import UnitGroup
from ..network.vocabulary import LateRows, read_by_view, table_of
from ..views import LEARNING, POOL, TRUNK, View, owner_of, task_key
from .learner import Learner
from .pruning import PruningConfig
from .router import RouterSums, reference_inputs
from .verification import CertifiedNetwork


class LearningNetwork(CertifiedNetwork):
    """Learns tasks, one after another. Invariant: what a committed task reads never changes."""

    def add_task(
        self,
        name: str,
        task_type: str = "sequence-classification",
        labels: list[str] | None = None,
        problem_type: str = "single_label_classification",
        forward_transfer: str | list[str] | None = None,
        pooling: str | None = None,
        head_dropout: float = 0.1,
        temperature: float = 0.05,
        normalize: bool = True,
        own_output_embeddings: bool | None = None,
    ) -> TaskRecord:
        """Declare a task, to be learned with `EideticTrainer(model, task=name, ...)`.

        Args:
            name: 1 to 64 letters, digits, `-`, `_`, `.`; not starting with a dot.
            task_type: the kind of task: `"sequence-classification"`, `"token-classification"`,
                `"question-answering"`, `"multiple-choice"`, `"causal-lm"`, `"seq2seq-lm"`, `"masked-lm"` or
                `"feature-extraction"` (see docs/kinds.md).
            labels: names of the labels in the order of the logits, in the kinds that classify sequences or tokens.
                For regression, names of the targets (`["score"]` by default).
            problem_type: of sequence classification: `"single_label_classification"`, `"multi_label_classification"`
                or `"regression"`.
            forward_transfer: which earlier tasks this one reads: `"all"`, `"none"` or names; the model's by default.
            pooling: how a head that reads whole sequences does it: `"mean"` over real tokens, `"first"` token, or
                `"last"` real token. By default the last one in a decoder, where no other token has seen all of the
                sequence, and else the mean.
            head_dropout: dropout probability before the classifier.
            temperature: of the contrastive loss of `"feature-extraction"`.
            normalize: whether the embeddings of `"feature-extraction"` are scaled to length 1.
            own_output_embeddings: whether a language model scores tokens by embeddings of its own, `(tokens,
                embedding)`, which start as copies of the model's; else by the model's, which are frozen. By default
                only after the first task of a random backbone, whose embeddings know that task's tokens alone.

        Raises:
            TaskError: if the name is malformed or taken, or there are no labels, or an ancestor is unknown, or the
                backbone can not have this kind of task.
        """
        check_task_name(name)
        if any(task.name == name for task in [*self.config.tasks, *self._pending.values()]):
            state = "committed" if self.is_committed(name) else "added"
            raise TaskError(f"There is a task '{name}' already ({state}). Choose another name.")
        if not self.config.pool:
            raise TaskError(
                "This model has no pool: it was released for inference only, or loaded with tasks=[...]. Load the "
                "whole checkpoint to learn a new task."
            )
        if problem_type == "regression" and task_type == SEQUENCE_CLASSIFICATION and not labels:
            labels = ["score"]
        transfer = self.config.forward_transfer if forward_transfer is None else forward_transfer
        check_transfer(transfer)
        for ancestor in transfer if isinstance(transfer, list) else []:
            if forward_transfer is not None and not self.is_committed(ancestor):
                raise TaskError(
                    f"forward_transfer names '{ancestor}', which is not committed; committed are {self.tasks}."
                )
        record = TaskRecord(
            name=name,
            task_type=task_type,
            problem_type=problem_type,
            labels=list(labels) if isinstance(labels, (list, tuple)) else labels or [],
            pooling=pooling or ("last" if family_of(self.config.base_config) == DECODER else "mean"),
            head_dropout=head_dropout,
            temperature=temperature,
            normalize=normalize,
            own_output_embeddings=own_output_embeddings,
        )
        check_kind(record, self.config)
        kind_of(record).complete(record, self.config, self._vocabulary())
        self._pending[name] = record
        self._transfer[name] = transfer
        return record

    def begin_task(self, name: str, pruning: PruningConfig | None = None) -> Learner:
        """Open the pool for a task that was added: from here on the model has Parameters to train.

        `EideticTrainer` calls it. Call it yourself to build an optimizer of your own before training.

        Raises:
            TaskError: if the task is unknown or committed, or another one is being learned, or no unit is free and
                `pruning.on_exhausted` is `"error"`.
        """
        pruning = pruning or PruningConfig()
        record = self.record(name)
        if self.is_committed(name):
            raise TaskError(f"The task '{name}' is committed: it will never change. Add a task of another name.")
        if self.learner is not None:
            raise TaskError(
                f"'{self.learner.name}' is being learned. Finish it, or drop it with model.abandon_task(), before "
                f"'{name}' begins."
            )
        check_kind(record, self.config)
        exhausted = [group for group in self._groups() if group.count(POOL) == 0]
        if exhausted and pruning.on_exhausted == "error":
            raise TaskError(
                f"No unit is free in {len(exhausted)} of {len(self.groups)} groups ({exhausted[0].name}, ...). Learn "
                "earlier tasks with a smaller PruningConfig.keep, or use on_exhausted='private' or 'expand'."
            )
        expanded = {}
        if exhausted and pruning.on_exhausted == "expand":
            expanded = self.expand(pruning.expand_by, [group.name for group in exhausted])
        transfer = self._transfer[name]
        committed = [task.name for task in self.config.tasks]
        if transfer == "all":
            record.ancestors = committed
        else:
            record.ancestors = (
                [] if transfer == "none" else [ancestor for ancestor in committed if ancestor in transfer]
            )
        ancestors = [task_key(ancestor) for ancestor in record.ancestors]
        self.learner = Learner(name, pruning, self._groups(), self)
        self.learner.expanded = expanded
        try:
            if not self.config.trunk_pretrained and not self.config.tasks:
                self._thaw_trunk(kind_of(record).reads_vocabulary)
            for group in self._groups():
                group.begin(ancestors)
            for norm in self._norms():
                norm.begin()
            self.input_rows.begin()
            kind_of(record).complete(record, self.config, self._vocabulary(View(LEARNING)))
            if kind_of(record).reads_output_embeddings(record):
                self.output_rows.begin()
            self.heads[LEARNING] = self._start_head(record)
        except BaseException:
            self.abandon_task()
            raise
        return self.learner

    def _start_head(self, record: TaskRecord) -> nn.Module:
        """A head to learn: the pretrained one, if this kind of task has one and it was in the checkpoint."""
        head, kind = self._new_head(record), kind_of(record)
        state = head.state_dict()
        if kind.reads_vocabulary and POOL in self.language_head:
            state.update(self.language_head[POOL].state_dict())
            if "bias" in state and record.vocab_size is not None:  # tokens that came later start without one
                state["bias"] = functional.pad(state["bias"], (0, record.vocab_size - len(state["bias"])))
        if kind.reads_vocabulary and not kind.reads_output_embeddings(record):
            state["embeddings"] = self._vocabulary(View(LEARNING))
        head.load_state_dict(state)
        return head

    def _trunk_modules(self, reads_vocabulary: bool) -> Iterator[nn.Module]:
        for name, module in self.backbone.named_modules():
            if module._buffers and not any(owner_of(f"{name}.{leaf}") != TRUNK for leaf in module._buffers):
                yield module
        if reads_vocabulary:
            yield self.output_embeddings

    def _thaw_trunk(self, reads_vocabulary: bool) -> None:
        """Make the trunk of a random backbone trainable for the first task, which will own it."""
        self._thawed = {
            name: tensor.detach().clone()
            for name, tensor in self.state_dict().items()
            if owner_of(name) == TRUNK and name.startswith(("backbone.", "output_embeddings."))
        }
        for module in self._trunk_modules(reads_vocabulary):
            _convert_own(module, thaw)

    def _freeze_trunk(self, restore: bool) -> None:
        if self._thawed is None:
            return
        modules = dict(self.named_modules())
        for name, before in self._thawed.items():
            module_name, _, leaf = name.rpartition(".")
            module = modules[module_name]
            parameter = module._parameters.pop(leaf, None)
            if parameter is not None:
                module.register_buffer(leaf, before if restore else parameter.detach().clone())
        self._thawed = None

    def abandon_task(self) -> None:
        """Drop the task being learned: every tensor is as it was before it began. The task stays added."""
        if self.learner is None:
            return
        self._freeze_trunk(restore=True)
        self._forget_reference()
        expanded = self.learner.expanded
        self._end_learning()
        for group in self._groups():
            if group.name in expanded:
                group.shrink(expanded[group.name])
                self.config.expanded[group.name] -= expanded[group.name]

    def _forget_reference(self) -> None:
        """Let the next commit look at the trunk again, as long as no committed task depends on it."""
        if not self.config.tasks:
            self.router.clear_reference()

    def _end_learning(self) -> None:
        for group in self._groups():
            group.end()
        for norm in self._norms():
            norm.end()
        for rows in (self.input_rows, self.output_rows):
            rows.end()
        if LEARNING in self.heads:
            del self.heads[LEARNING]
        self.learner = None

    def commit_task(
        self, metrics: Mapping[str, float] | None = None, router_sums: RouterSums | None = None
    ) -> TaskRecord:
        """Freeze the task being learned: it takes its kept units out of the pool, for good, and gets its certificate.

        Args:
            metrics: figures for the model card.
            router_sums: what `router_sums` returned for the task's training data. Without them the model answers the
                task only when it is named.

        Raises:
            TaskError: if no task is being learned.
        """
        if self.learner is None:
            raise TaskError("No task is being learned; begin one with model.begin_task(name) or EideticTrainer.")
        self.learner.finish()
        record = self.record(self.learner.name)
        key = task_key(record.name)
        recycle_std = None
        if self.learner.config.recycle == "random":
            recycle_std = getattr(self.backbone.config, "initializer_range", 0.02)
        undo: list[tuple[UnitGroup | LateRows, Any]] = []
        vocab_size = record.vocab_size
        trunk_before = self._thawed
        try:
            for group in self._groups():
                undo.append((group, group.snapshot()))
                group.commit(key, recycle_std)
            for norm in self._norms():
                norm.commit(key)
            self.heads[key] = freeze(deepcopy(self.heads[LEARNING]))
            self._freeze_trunk(restore=False)
            self._commit_vocabulary(record, undo)
            record.units = {group.name: group.count(key) for group in self._groups()}
            record.metrics = dict(metrics or {})
            self.config.tasks.append(record)
            if router_sums is not None:
                self.router.put(record.name, router_sums)
            self._certify(record)
        except BaseException:
            for books, state in undo:
                books.undo_commit(key, state)
            record.vocab_size = vocab_size
            for norm in self._norms():
                norm.tasks.pop(key) if key in norm.tasks else None
            for modules in (self.heads, self.probes):
                modules.pop(key) if key in modules else None
            self.config.tasks = [task for task in self.config.tasks if task is not record]
            record.units, record.certificate, record.metrics = {}, {}, {}
            self.router.remove(record.name)
            self._forget_reference()
            self._freeze_trunk(restore=True)
            if trunk_before is not None:
                self._restore_trunk(trunk_before)
            self._end_learning()
            raise
        del self._pending[record.name]
        self._end_learning()
        self._set_labels()
        return record

    def _commit_vocabulary(self, record: TaskRecord, undo: list[tuple[UnitGroup | LateRows, Any]]) -> None:
        """Give the task the tokens of the pool, if it has read any of them or scores them all."""
        scores = kind_of(record).reads_vocabulary
        read = self.input_rows.get("progress")
        reads = scores or (read is not None and bool(reduce(read.float(), "sum")))
        reads_output = kind_of(record).reads_output_embeddings(record)
        for rows, takes in zip(self._tables(), (reads, reads_output), strict=False):
            undo.append((rows, rows.snapshot()))
            rows.commit(task_key(record.name), takes)
        if self.input_rows.has_grown:
            record.vocab_size = self.input_rows.owned

    @torch.no_grad()
    def router_sums(self, batches: Iterable[Mapping[str, Any]]) -> RouterSums:
        """What the task being learned leaves behind for the router: one pass over its data through the trunk.

        Args:
            batches: as `forward` takes them, with `labels` if the task has a single label per sequence. Sequences
                without a token or with the label -100 do not count. Each kind of task says which text it is known by:
                all choices of a multiple-choice example together, both texts of a pair of sentences, and of a text to
                be continued the part that carries no label, its prompt, or the text and its beginnings.

        Returns:
            Sums to give to `commit_task`. Those of several processes may be added with `RouterSums.merged`.

        Raises:
            TaskError: if no task is being learned.
            ValueError: if a batch has no labels that the task needs.
        """
        if self.learner is None:
            raise TaskError("No task is being learned; its sums are taken before its commit.")
        task = self.record(self.learner.name)
        kind = kind_of(task)
        with self._in_eval_mode(), torch.autocast(self.device.type, enabled=False):
            if not self.router.is_ready:
                self._set_reference()
            sums = RouterSums.zeros(kind.n_prototypes(task), self.router.n_features)
            for batch in batches:
                for text in kind.texts(task, batch):
                    self._add_to(sums, task, text)
        return sums

    def _add_to(self, sums: RouterSums, task: TaskRecord, text: Mapping[str, Any]) -> None:
        """Add a batch of sequences to a task's sums."""
        inputs = {name: text[name].to(self.device) for name in MODEL_INPUTS if text.get(name) is not None}
        features = self.router.features(self._pooled_trunk(inputs))
        labels = kind_of(task).prototype_labels(task, text, len(features))
        counted = labels >= 0
        if "attention_mask" in inputs:
            counted &= inputs["attention_mask"].cpu().flatten(1).sum(1) > 0
        sums.add(features.cpu()[counted], labels[counted])

    def _set_reference(self) -> None:
        """Look at random tokens, which stand for no task, to fix how the router scales its features."""
        ids, mask = (tensor.to(self.device) for tensor in reference_inputs(self.backbone.config.vocab_size))
        self.router.set_reference(self._pooled_trunk({"input_ids": ids, "attention_mask": mask}))

    def _restore_trunk(self, before: dict[str, Tensor]) -> None:
        modules = dict(self.named_modules())
        for name, tensor in before.items():
            module_name, _, leaf = name.rpartition(".")
            modules[module_name]._buffers[leaf] = tensor

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Add tokens to the vocabulary, for tasks to come. No committed task sees them: it keeps its vocabulary.

        The next task that reads one of the new tokens, or scores them as a language model, trains the rows of all of
        them, and takes them with it at its commit; later tasks read them there.

        Args:
            new_num_tokens: size of the whole vocabulary, such as `len(tokenizer)`; as it is, if not given.
            pad_to_multiple_of: round it up to a multiple of this.
            mean_resizing: start new rows at the mean of the backbone's own rows; else draw them from a normal
                distribution.

        Returns:
            The input embeddings.

        Raises:
            TaskError: while a task is being learned, or if the model has no pool.
            ValueError: if the vocabulary would shrink.
        """
        total = self.input_rows.total
        size = total if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", multiple)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number above 0.")
        size = -(-size // multiple) * multiple
        embeddings = cast(nn.Embedding, self.get_input_embeddings())
        if size < total:
            raise ValueError(
                f"new_num_tokens={size}: the vocabulary has {total} tokens, and it can only grow, since committed "
                "tasks and the trunk read them. Leave it as it is: tokens that a tokenizer does not have do no harm."
            )
        if size == total:
            return embeddings
        if self.learner is not None:
            raise TaskError(f"'{self.learner.name}' is being learned; grow the vocabulary before a task begins.")
        if not self.config.pool:
            raise TaskError(
                "This model has no pool, so new tokens would belong to nobody: it was released for inference only, or "
                "loaded with tasks=[...]. Load the whole checkpoint to grow its vocabulary."
            )
        std = None if mean_resizing else getattr(self.backbone.config, "initializer_range", 0.02)
        if not self.config.trunk_pretrained and not self.config.tasks:
            self._grow_trunk(size, std)
        else:
            for rows in self._tables():
                rows.grow(size - rows.total, std)
            read_by_view(self.input_rows, self.backbone)
            self.config.vocab_size = size
        for task in self._pending.values():
            task.vocab_size = None
        return embeddings

    def _grow_trunk(self, size: int, std: float | None) -> None:
        """Add tokens to the trunk of a random backbone itself, which the first task is going to train."""
        for rows in self._tables():
            rows.grow(size - rows.total, std)
            rows.join()
        embedding = cast(nn.Embedding, table_of(self.get_input_embeddings()))
        embedding.num_embeddings = size
        self.config.base_config.vocab_size = self.backbone.config.vocab_size = size
        if self.config.output_embeddings is not None:
            self.config.output_embeddings[0] = size

    def expand(self, units: float | int, groups: list[str] | None = None) -> dict[str, int]:
        """Add free units. Their out-projections start at zero; no committed task reads them.

        Args:
            units: how many per group; a fraction below 1 is a share of the group's size (at least one unit).
            groups: names of unit groups such as `layers.2.heads`; all by default.

        Returns:
            The number of units added, by group.

        Raises:
            TaskError: while a task is being learned.
            ValueError: if `units` is not positive or a group does not exist.
        """
        if self.learner is not None:
            raise TaskError(f"'{self.learner.name}' is being learned; expand the pool before a task begins.")
        if not units > 0:
            raise ValueError(f"units={units!r}: expected a number above 0.")
        known = {group.name: group for group in self._groups()}
        unknown = [name for name in groups or [] if name not in known]
        if unknown:
            raise ValueError(f"There is no unit group {unknown[0]!r}; there are {list(known)}.")
        std = getattr(self.backbone.config, "initializer_range", 0.02)
        added = {}
        for name in known if groups is None else groups:
            added[name] = max(round(units * known[name].total), 1) if units < 1 else int(units)
            known[name].expand(added[name], std)
            self.config.expanded[name] = self.config.expanded.get(name, 0) + added[name]
        return added


def check_transfer(forward_transfer: Any) -> None:
    """Raise a `ValueError` if this does not say which earlier tasks a task reads."""
    is_list = isinstance(forward_transfer, list) and all(isinstance(name, str) for name in forward_transfer)
    if forward_transfer not in ("all", "none") and not is_list:
        raise ValueError(f"forward_transfer={forward_transfer!r}: expected 'all', 'none' or a list of task names.")


def _convert_own(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> None:
    """Apply `freeze` or `thaw` to a module's own tensors, not to its children's."""
    children, module._modules = module._modules, {}
    try:
        convert(module)
    finally:
        module._modules = children
