"""What an answer depends on beside weights, and which differences count in another version of transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import transformers
from support.backbones import ALL_CONFIGS, tiny_model
from support.certified import commit

from eidetic_hf import EideticModel
from eidetic_hf.model.certificate import Evidence
from eidetic_hf.model.settings import Comparing, as_bytes, as_tensor, backbone_settings, written

OTHER = "5.17.0"


@pytest.fixture(scope="module")
def model() -> EideticModel:
    """A model of one task; it is not changed."""
    made = tiny_model()
    commit(made, "task", labels=["x", "y"])
    return made


def settings_of(model: EideticModel) -> dict[str, Any]:
    return Evidence(model).settings.of(model.record("task"))


def of_version(settings: dict[str, Any], version: str) -> dict[str, Any]:
    return {**settings, "environment": {**settings["environment"], "transformers": version}}


def difference(
    model: EideticModel, then: dict[str, Any], now: dict[str, Any], saved_by: str | None = None
) -> str | None:
    return Comparing(model.config, saved_by).difference(then, now)


def test_settings_are_the_same_bytes_in_whatever_order_they_come(model: EideticModel) -> None:
    settings = settings_of(model)
    turned = dict(reversed(settings.items()))
    assert list(turned) != list(settings) and written(turned) == written(settings)
    assert as_bytes(as_tensor(written(settings))) == written(settings)
    lone = {"labels": ["\ud800", "ä"]}
    assert written(lone) == b'{"labels":["\xed\xa0\x80","\xc3\xa4"]}'


def test_where_a_backbone_is_from_and_how_it_is_computed_is_no_setting() -> None:
    values = {"_name_or_path": "x", "dtype": "float32", "hidden_dropout_prob": 0.1, "id2label": {}, "eps": 1e-5}
    assert backbone_settings({**values, "text_config": values}) == {"eps": 1e-5, "text_config": {"eps": 1e-5}}


def test_the_first_key_that_differs_is_named_with_both_values(model: EideticModel) -> None:
    then = settings_of(model)
    now = copy.deepcopy(then)
    now["base_config"]["layer_norm_eps"], now["labels"] = 1e-6, ["y", "x"]
    assert difference(model, then, then) is None
    assert difference(model, then, now) == "settings.base_config.layer_norm_eps: 1e-06, at commit 1e-12"
    assert difference(model, {**then, "labels": ["x"]}, then) == 'settings.labels: ["x", "y"], at commit ["x"]'
    same = {**now, "base_config": then["base_config"]}
    assert difference(model, then, same) == 'settings.labels.0: "y", at commit "x"'
    truth = {**then, "trunk_layers": True}
    assert difference(model, then, truth) == "settings.trunk_layers: true, at commit 1", "1 == True"
    assert difference(model, then, {**then, "trunk_layers": 1.0}) is None


def test_what_a_newer_version_adds_is_equal_at_its_default_and_in_the_same_version_a_difference(
    model: EideticModel,
) -> None:
    now = settings_of(model)
    then = copy.deepcopy(now)
    del then["base_config"]["layer_norm_eps"]
    added = "settings.base_config.layer_norm_eps: 1e-12, at commit nothing"
    assert difference(model, then, now) == added
    assert difference(model, of_version(then, OTHER), of_version(now, OTHER)) is None
    now["base_config"]["layer_norm_eps"] = 1e-6
    added = "settings.base_config.layer_norm_eps: 1e-06, at commit nothing"
    assert difference(model, of_version(then, OTHER), of_version(now, OTHER)) == added


def test_what_another_version_has_written_and_this_one_does_not_know_is_read_by_nobody(model: EideticModel) -> None:
    then = settings_of(model)
    now = copy.deepcopy(then)
    now["base_config"]["from_the_future"] = 3
    unknown = "settings.base_config.from_the_future: 3, at commit nothing"
    assert difference(model, then, now) == difference(model, then, now, transformers.__version__) == unknown
    assert difference(model, then, now, "9.0.0") is None
    gone = "settings.base_config.from_the_future: nothing, at commit 3"
    assert difference(model, now, then) == gone
    assert difference(model, of_version(now, OTHER), of_version(then, OTHER)) is None


def test_a_value_that_differs_is_a_difference_in_every_version(model: EideticModel) -> None:
    then = of_version(settings_of(model), OTHER)
    now = copy.deepcopy(then)
    now["base_config"]["layer_norm_eps"] = 1e-6
    assert difference(model, then, now) == "settings.base_config.layer_norm_eps: 1e-06, at commit 1e-12"
    then.pop("labels")
    assert difference(model, then, of_version(settings_of(model), OTHER)) == (
        'settings.labels: ["x", "y"], at commit nothing'
    )


def test_an_option_that_a_kind_has_got_since_is_equal_at_its_default(model: EideticModel) -> None:
    now = settings_of(model)
    then = copy.deepcopy(now)
    assert then["options"].pop("head_dropout") == 0.1
    assert difference(model, then, now) is None
    now["options"]["head_dropout"] = 0.2
    assert difference(model, then, now) == "settings.options.head_dropout: 0.2, at commit nothing"


@pytest.mark.parametrize("architecture", ALL_CONFIGS)
def test_a_configuration_says_the_same_after_it_was_written_and_read(architecture: str) -> None:
    from eidetic_hf.configuration import EideticConfig

    config = EideticConfig(base_config=ALL_CONFIGS[architecture](), trunk_layers=1)
    again = EideticConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"})
    assert written(backbone_settings(again.base_config.to_dict())) == written(
        backbone_settings(config.base_config.to_dict())
    )
    wrong = {**config.to_dict(), "is_encoder_decoder": not config.is_encoder_decoder}
    wrong.pop("model_type")
    assert EideticConfig(**wrong).is_encoder_decoder == config.base_config.is_encoder_decoder
