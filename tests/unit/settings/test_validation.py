from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks.settings import SCHEMAS
from flowers.settings.config import load_config, read_settings
from flowers.settings.config_reference import settings_of
from flowers.settings.programs import CONFIGURED, settings_type
from flowers.settings.validation import key_names
from tests.wrong_settings import REQUIRED, WRONG


@pytest.fixture(scope="module", params=[*CONFIGURED, *SCHEMAS])
def program(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, load_config(REQUIRED.get(request.param, []), request.param)


def test_the_schema_lists_the_keys_of_the_configuration(program: tuple[str, Any]):
    name, _ = program
    documented = {setting.key for setting in settings_of(name)}
    assert documented <= {*key_names(settings_type(name))}


def test_read_settings_names_the_key_the_value_and_what_was_expected(program: tuple[str, Any]):
    name, cfg = program
    for override, answer in WRONG[name].items():
        key, _, value = override.lstrip("+~").partition("=")
        changed: Any = OmegaConf.create(cfg.to_dict())
        if override.startswith("~"):
            parent, _, last = key.rpartition(".")
            group: Any = OmegaConf.select(changed, parent) if parent else changed
            del group[last]
        else:
            OmegaConf.update(changed, key, OmegaConf.create(f"x: {value}").x, force_add=True)
        with pytest.raises(ValueError, match=r".") as error:
            read_settings(changed, settings_type(name))
        assert answer in str(error.value), override
        assert str(error.value).startswith(key.partition(".")[0]), override
        assert "\n" not in str(error.value)
