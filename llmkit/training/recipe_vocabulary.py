"""The tokenizer of a recipe: another one, one that is trained, and tokens that are added; and the model that fits it.

Embeddings of a changed vocabulary are made of those of the old one, so that training starts from what the model knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path
from llmkit.config.recipe import Recipe
from llmkit.config.settings import LoadSettings
from llmkit.errors import InputError, UsageError
from llmkit.files import file_hash
from llmkit.hub.reachability import offline
from llmkit.log import log, warn
from llmkit.models.embeddings import rebuild_embeddings
from llmkit.models.fresh import train_tokenizer
from llmkit.models.load import Loaded
from llmkit.models.locate import locate_tokenizer
from llmkit.models.new_tokens import Extension, extend_tokenizer, read_pieces
from llmkit.models.quiet import quiet_transformers
from llmkit.models.token_ids import change_token_ids, refuse_moved_padding
from llmkit.models.tokenizer import load_tokenizer
from llmkit.models.vocabulary import Origins, Vocabulary, find_origins
from llmkit.tasks import Head, Task
from llmkit.training.dataset import divide
from llmkit.training.disk_cache import cached_folder, code_version, digest
from llmkit.training.row_table import read_rows

__all__ = ["fit_vocabulary", "recipe_tokenizer", "replaces_tokenizer"]


def replaces_tokenizer(recipe: Recipe) -> bool:
    """Whether a recipe has another tokenizer than its checkpoint's."""
    named = recipe.tokenizer.name_or_path is not None or recipe.tokenizer.train is not None
    return named and getattr(recipe.model, "config", None) is None


def recipe_tokenizer(recipe: Recipe, task: Task, settings: LoadSettings, head: Head) -> tuple[str, Callable[[], Any]]:
    """A hash of the tokenizer that a recipe names or trains, and a function that makes it."""
    section = recipe.tokenizer
    if section.name_or_path is not None and (file := user_path(section.name_or_path)).is_file():
        return digest(str(file), file_hash(file)), lambda: _of_file(file)
    if section.name_or_path is not None:
        named = LoadSettings(model=section.name_or_path, trust_remote_code=settings.trust_remote_code)
        with offline(settings.offline):
            folder = locate_tokenizer(named, task.name).folder
        key = _files_hash(folder)
        return key, lambda: load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
    wanted, rows = section.train, read_rows(recipe.data.train, task)
    assert wanted is not None
    trained, _ = divide(recipe, rows)
    key = digest("tokenizer", wanted, rows.key, trained, code_version())

    def build(folder: Path) -> None:
        tokenizer = train_tokenizer(
            _texts(rows.table[index]["row"] for index in trained),
            vocab_size=wanted.vocab_size,
            min_frequency=wanted.min_frequency,
            head=head,
        )
        if len(tokenizer) < wanted.vocab_size:
            log.info("the tokenizer has %d tokens: the corpus supports no more merges", len(tokenizer))
        tokenizer.save_pretrained(folder)

    return key, lambda: load_tokenizer(cached_folder(digest(key, head), build))


def _of_file(file: Path) -> Any:
    """The tokenizer of a tokenizer.json, with the settings beside it if there are any."""
    from transformers import PreTrainedTokenizerFast

    if file.suffix != ".json":
        raise UsageError(
            f"tokenizer.name_or_path: {file} is not a tokenizer.json",
            "name a folder with it as tokenizer.model and a tokenizer_config.json that has a tokenizer_class, such as"
            " LlamaTokenizer",
            "add its tokens to the vocabulary with tokenizer.add_tokens",
            code="not_supported",
        )
    if file.name == "tokenizer.json" and (file.parent / "tokenizer_config.json").is_file():
        return load_tokenizer(file.parent)
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:  # of tokenizers, which has no class for it
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"tokenizer.name_or_path: {file} is not a tokenizer.json ({reason})", "name another file"
        ) from error


def _files_hash(folder: Path) -> str:
    """A hash of a tokenizer's files, which may be replaced in the same folder."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES)
    return digest(str(folder), [(path.name, file_hash(path)) for path in files])


_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".spm", ".bpe", ".tiktoken")


def _texts(rows: Iterator[str]) -> Iterator[str]:
    """All texts in rows, which are JSON."""
    for row in rows:
        pending: list[Any] = [json.loads(row)] if row else []
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                pending.extend(value.values())
            elif isinstance(value, list):
                pending.extend(value)


_KEPT = ("model_max_length", "model_input_names", "padding_side", "truncation_side")
"""Attributes of a tokenizer that belong to the model: its context, its inputs and how it is padded."""


def fit_vocabulary(recipe: Recipe, task: Task, settings: LoadSettings, loaded: Loaded) -> Loaded:
    """The model with the tokenizer of the recipe and embeddings for all of its tokens.

    Raises:
        UsageError: the tokenizer or the model cannot be changed this way.
    """
    replaced, section, tokenizer = replaces_tokenizer(recipe), recipe.tokenizer, loaded.tokenizer
    if not replaced and not section.add_tokens:
        return loaded
    old = Vocabulary(tokenizer)
    if replaced:
        _, make = recipe_tokenizer(recipe, task, settings, loaded.head)
        tokenizer = make()
        _check_class(tokenizer, loaded.tokenizer)
        _take_settings(tokenizer, loaded.tokenizer)
    outline = loaded.model.device.type == "meta"  # the weights follow
    if section.add_tokens:
        _add_tokens(section.add_tokens, tokenizer, report=outline)
    new = Vocabulary(tokenizer)
    model: Any = loaded.model
    rows = 0 if replaced else int(model.get_input_embeddings().weight.shape[0])
    origins = find_origins(old, new, rows)
    if new.ids == old.ids:
        return loaded
    if replaced:
        if section.chat_template is None:
            _check_template(tokenizer, old, new)
        refuse_moved_padding(model, old, new)
    with quiet_transformers():
        tables = rebuild_embeddings(model, origins.ids, buffers=recipe.adapter is None)
    token_ids: dict[str, Any] | None = None
    if replaced:
        token_ids, lost = change_token_ids(model, old, new, origins, tables)
        if recipe.adapter is not None and (token_ids.get("pad_token_id") or 0) >= len(old.ids):
            del token_ids["pad_token_id"]  # which its base could not be loaded with
    if outline:
        _report(origins, new)
        if token_ids is not None and lost:
            warn("setting_ignored", "the tokenizer lacks tokens of %s, which are ignored", ", ".join(lost))
    added = () if replaced else tuple(sorted(number for token, number in new.ids.items() if token not in old.ids))
    source = replace(loaded.source, token_ids=token_ids)
    return replace(loaded, tokenizer=tokenizer, source=source, new_tokens=added)


def _check_class(tokenizer: Any, own: Any) -> None:
    """Refuse a tokenizer in Python with files of its own, such as Marian's, which is made for one kind of model."""
    if not tokenizer.is_fast and tokenizer.vocab_files_names and type(tokenizer) is not type(own):
        name, files = type(tokenizer).__name__, ", ".join(tokenizer.vocab_files_names.values())
        raise UsageError(
            f"tokenizer.name_or_path: a {name} ({files}) fits only models that were made for it",
            "name a tokenizer that has a tokenizer.json",
            code="not_supported",
        )


def _take_settings(tokenizer: Any, own: Any) -> None:
    """Give a tokenizer what belongs to the model, and what it lacks: roles of special tokens, and a chat template."""
    for name in _KEPT:
        setattr(tokenizer, name, getattr(own, name))
        tokenizer.init_kwargs[name] = getattr(tokenizer, name)  # which are saved
    if not tokenizer.all_special_tokens:  # of a tokenizer.json alone
        known = tokenizer.get_vocab()
        roles = {role: token for role, token in own.special_tokens_map.items() if token in known}
        tokenizer.add_special_tokens(roles)
    tokenizer.chat_template = tokenizer.chat_template or own.chat_template


def _check_template(tokenizer: Any, old: Vocabulary, new: Vocabulary) -> None:
    """Refuse a chat template with special tokens that became plain text."""
    text = str(tokenizer.chat_template or "")
    if lost := [token for token in old.added if token in text and token not in new.ids]:
        raise UsageError(
            f"the tokenizer lacks {', '.join(lost)}, which the chat template uses",
            f"add them with tokenizer.add_tokens: {json.dumps(lost, ensure_ascii=False)}",
            "set tokenizer.chat_template",
            code="not_supported",
        )


def _add_tokens(added: list[str] | str, tokenizer: Any, *, report: bool) -> None:
    before = len(tokenizer)
    if isinstance(added, list):
        tokenizer.add_tokens(added)
    else:
        found = extend_tokenizer(tokenizer, read_pieces(user_path(added)))
        if report and found.tokens:
            _report_extension(added, found)
    if report and len(tokenizer) == before:
        warn("no_effect", "tokenizer.add_tokens has no effect: the tokenizer already has all of them")


def _report_extension(name: str, found: Extension) -> None:
    notes = (
        (found.known, "that it already has are left out"),
        (found.parts, "more were added, from which it builds the others"),
        (found.left_out, "that it cannot have are left out"),
    )
    more = "".join(f"; {count:,} {note}" for count, note in notes if count)
    log.info("%s: %d tokens were added to the tokenizer%s", name, len(found.tokens), more)


def _report(origins: Origins, new: Vocabulary) -> None:
    line = "vocabulary: %d tokens, of which %d keep their embeddings, and %d have the mean of their old pieces"
    log.info(line, len(new.ids), origins.kept, len(origins.composed))
    if origins.unknown:
        some = ", ".join(map(repr, origins.unknown[:3]))
        log.info("%d tokens are unknown to the model and have the mean of all (%s …)", len(origins.unknown), some)
