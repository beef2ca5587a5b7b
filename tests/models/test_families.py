"""What is known by name is known in one place, of types that there are."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

import llmkit
from llmkit.models.families import FAMILIES, FRAMED, Family, family
from llmkit.models.tables import class_names, model_types
from llmkit.models.upstream import type_of_gguf
from llmkit.tasks import TASKS, Head
from llmkit.text.languages import Language
from tests.zoo.models import build

PACKAGE = Path(llmkit.__file__).parent
ELSEWHERE = {
    "cli/suggestions.py": {"beam"},  # of beam search
    "models/load.py": {"gpt2"},  # the name that GGUF has for byte-level vocabularies of all families
}


def test_entries_are_of_types_that_transformers_has() -> None:
    assert FAMILIES.keys() <= set(model_types())
    assert {tokenizer_class_from_name(name) is not None for name in FRAMED} == {True}


def test_entries_agree_with_themselves() -> None:
    for model_type, each in FAMILIES.items():
        assert each != Family(), model_type
        translates = each.languages is not Family().languages
        assert translates or not (each.only_translates or each.forces_language), model_type
        assert not translates or model_type in class_names(Head.SEQ2SEQ), model_type
        assert each.prefixes.keys() <= {name for name, task in TASKS.items() if task.takes_prefix}, model_type
        assert not each.gguf_architecture or type_of_gguf(each.gguf_architecture) in FAMILIES, model_type


def named(path: Path) -> set[str]:
    """The model types and the classes of one family that a module has as strings."""
    texts = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    types = {spelled for name in model_types() for spelled in (name, name.replace("_", "-"))}
    modules: dict[str, str] = vars(transformers)["_class_to_module"]  # without importing one
    ours = {text for text in texts if modules.get(text, "").startswith("models.") and ".auto" not in modules[text]}
    return ours | (texts & types)


def test_no_other_module_names_a_family() -> None:
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).as_posix()
        if not module.startswith("models/families/"):
            assert named(path) <= ELSEWHERE.get(module, set()), module
    assert named(PACKAGE / "models" / "families" / "__init__.py") == {*FAMILIES, *FRAMED, "t5"}


@pytest.fixture
def tokenizer() -> Any:
    codes = [AddedToken(f"__{code}__", special=True) for code in ("eng", "fra", "cmn", "cmn_Hant", "token")]
    return transformers.SeamlessM4TTokenizer(additional_special_tokens=codes)


def test_seamless_is_told_languages_as_its_own_generate_is(tokenizer: Any, tmp_path: Path) -> None:
    languages = family("seamless_m4t_v2").languages("any", {}, tokenizer)
    assert languages is not None
    assert languages.targets is not None
    assert set(languages.targets) == {Language(tag) for tag in ("en", "fr", "zh", "zh-Hant")}
    route = languages.route(Language("en"), Language("fr"))
    assert route.source_code == "eng"
    assert route.forced_bos_token_id == tokenizer.convert_tokens_to_ids("__fra__")

    model = build(Head.SEQ2SEQ, "seamless_m4t_v2", tmp_path).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.generation_config.text_decoder_lang_to_code_id = {"fra": 17}
    ids = torch.tensor([[5, 6, 7]])
    # Its own puts the language into the prompt of the decoder, which is not counted.
    expected = model.generate(input_ids=ids, tgt_lang="fra", do_sample=False, max_new_tokens=5)
    found = model.generate(input_ids=ids, forced_bos_token_id=17, do_sample=False, max_new_tokens=6)
    assert found.tolist() == expected.tolist()
    assert expected[0, 1] == 17
