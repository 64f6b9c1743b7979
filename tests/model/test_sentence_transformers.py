"""sentence-transformers with a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.backbones import tiny_model
from support.kind_cases import word_tokenizer

from eidetic_hf import EideticModel, TaskError

sentence_transformers: Any = pytest.importorskip("sentence_transformers")

TEXTS = ["w010 w011 w012", "w031 w030", "w011 w010 w010 w012"]


def commit(model: EideticModel, name: str, route_by: int, **options: Any) -> None:
    """Add and commit a task that was not trained, which the router knows by texts of three tokens."""
    model.add_task(name, **options)
    model.begin_task(name)
    torch.manual_seed(route_by)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    batch = {"input_ids": torch.randint(route_by, route_by + 3, (16, 6))}
    if options.get("labels"):
        batch["labels"] = torch.zeros(16)
    model.commit_task(router_sums=model.router_sums([batch]))


@pytest.fixture(scope="module")
def model() -> EideticModel:
    model = tiny_model()
    commit(model, "one", 10, task_type="feature-extraction", pooling="first")
    commit(model, "two", 30, task_type="feature-extraction", normalize=False)
    commit(model, "score", 50, labels=["score"], problem_type="regression")
    return model


@pytest.fixture(scope="module")
def folder(model: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences")
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_sentence_transformer_gives_the_embeddings_of_the_tasks(model: EideticModel, folder: Path) -> None:
    batch = word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        expected = [model(**batch, task=task).pooler_output[row] for row, task in enumerate(("one", "two", "one"))]
        routed = model.get_text_features(**batch)
    assert routed.tasks == ["one", "two", "one"]
    assert torch.equal(routed.pooler_output, torch.stack(expected))
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert loaded.get_embedding_dimension() == 32
    np.testing.assert_allclose(loaded.encode(TEXTS), torch.stack(expected), atol=1e-6)
    alone = sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"tasks": ["two"]})
    with torch.no_grad():
        two = model(**batch, task="two").pooler_output
        assert torch.equal(model.get_text_features(**batch, task="two").pooler_output, two)
    np.testing.assert_allclose(alone.encode(TEXTS), two, atol=1e-6)


def test_embeddings_come_with_what_is_asked_for_beside_them(
    model: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"input_ids": torch.tensor([[10, 11, 12]])}
    with torch.no_grad():
        expected = model(**batch, task="two", output_hidden_states=True)
        asked = model.get_text_features(**batch, task="two", output_hidden_states=True)
        first, second = model.get_text_features(**batch, task="two", return_dict=False)
        monkeypatch.setattr(model.config, "output_hidden_states", True)
        configured = model.get_text_features(**batch, task="two")
    for found in (asked, configured):
        assert len(found.hidden_states) == model.config.base_config.num_hidden_layers + 1
        assert all(torch.equal(*pair) for pair in zip(found.hidden_states, expected.hidden_states, strict=True))
    assert torch.equal(first, expected.last_hidden_state) and torch.equal(second, expected.pooler_output)
    with pytest.raises(TypeError, match=r"output_hidden_state.*output_hidden_states"):
        model.get_text_features(**batch, output_hidden_state=True)


def test_sentence_transformer_without_a_task_that_embeds_says_what_to_do(model: EideticModel, folder: Path) -> None:
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"tasks": ["score"]})
    with pytest.raises(TaskError, match=r"no task that embeds texts: of \['score'\], \[\] do\. .* feature-extraction"):
        loaded.encode(TEXTS)
    with pytest.raises(TaskError, match="The task 'score' does not embed texts"):
        model.get_text_features(torch.tensor([[10, 11]]), task="score")


def test_cross_encoder_scores_pairs(model: EideticModel, folder: Path) -> None:
    loaded = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    pair = word_tokenizer()(TEXTS[0], TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        expected = model(**pair, task="score").logits.sigmoid()[0, 0]
    assert loaded.num_labels == 1
    assert float(loaded.predict([(TEXTS[0], TEXTS[1])])[0]) == pytest.approx(float(expected), abs=1e-6)


def test_a_task_that_was_taken_out_embeds_texts_alike(model: EideticModel, tmp_path: Path) -> None:
    batch = word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    for task in ("one", "two"):
        model.extract_task(task, tmp_path / task, word_tokenizer())
        loaded = sentence_transformers.SentenceTransformer(str(tmp_path / task), device="cpu")
        with torch.no_grad():
            wanted = model(**batch, task=task).pooler_output
        found = loaded.encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
