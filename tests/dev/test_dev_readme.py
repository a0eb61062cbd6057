"""dev/README.md says what there is, no less and no more."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from dev.claude_answers import MODELS, Script, resolve_model
from tollgate.catalog.loader import load_catalog

README = (Path(__file__).resolve().parent.parent.parent / "dev" / "README.md").read_text()


def test_every_trigger_of_the_fake_claude_is_documented() -> None:
    table = README[README.index("| Key | Effect |") :]
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)", row)
    }
    assert documented == {item.name for item in fields(Script)}


def test_the_fake_claude_knows_every_model_that_can_be_sold() -> None:
    for name in ("default", "calls", "calls_pair", "models"):
        for model in load_catalog(name).models:
            assert resolve_model(model) == model


def test_the_fake_claudes_models_hold_what_the_catalog_says_about_them() -> None:
    for model in load_catalog("default").models.values():
        _, context, max_tokens, _ = MODELS[model.id]
        assert (model.context_tokens, model.max_output_tokens) == (context, max_tokens), model.id
