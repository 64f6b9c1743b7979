"""Names of owners, and the view of the pass in progress."""

from __future__ import annotations

import threading

import pytest

from eidetic_hf.views import LEARNING, POOL, TRUNK, View, current_view, owner_of, running_view, task_key, use_view


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("backbone.embeddings.word_embeddings.weight", TRUNK),
        ("backbone.encoder.layer.1.output.dense.segments.pool.weight", POOL),
        ("backbone.encoder.layer.1.output.dense.segments.@agnews.weight", "@agnews"),
        ("backbone.encoder.layer.1.output.dense.segments.learning.weight", LEARNING),
        ("groups.layers_1_heads.progress.kept", LEARNING),
        ("learner.search", LEARNING),
        ("heads.@sst%2E2.classifier.bias", "@sst%2E2"),
        ("input_rows.@new", "@new"),
        ("output_embeddings.weight", TRUNK),
    ],
)
def test_the_name_of_a_tensor_says_who_owns_it(name: str, owner: str) -> None:
    assert owner_of(name) == owner


def test_a_task_with_dots_in_its_name_is_one_component() -> None:
    assert task_key("sst.2.v1") == "@sst%2E2%2Ev1"
    assert owner_of(f"heads.{task_key('learning.pool')}.bias") == "@learning%2Epool"


def test_views_are_nested_and_end_with_an_error_too() -> None:
    assert running_view() is None
    with use_view(View("@a")):
        with pytest.raises(ZeroDivisionError), use_view(View("@b", teacher=True)):
            assert current_view() == View("@b", teacher=True)
            raise ZeroDivisionError
        assert current_view().key == "@a"
    with pytest.raises(RuntimeError, match=r"outside of EideticModel.forward"):
        current_view()


def test_each_thread_has_its_own_view() -> None:
    seen: list[View | None] = []
    with use_view(View("@a")):
        thread = threading.Thread(target=lambda: seen.append(running_view()))
        thread.start()
        thread.join()
        assert seen == [None] and current_view().key == "@a"


def test_a_decoder_has_a_mask_of_its_own() -> None:
    view = View(LEARNING, probe="fisher", token_mask="encoder's", decoder_token_mask="decoder's")  # type: ignore[arg-type]
    assert view.in_decoder() == View(LEARNING, probe="fisher", token_mask="decoder's", decoder_token_mask="decoder's")  # type: ignore[arg-type]
