"""The tokens that end an output: of a text that is continued, and of an assistant's turn.

Checkpoints name them in several files, which often differ: all of them count, since a model that generates one of them
has ended. Knows tokenizers and their chat templates, not how output is generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmkit.errors import CheckpointError, LlmkitError
from llmkit.heads.base import encode_text
from llmkit.heads.chat_template import render_chat, reply_frame
from llmkit.models.generation import set_ends, tokenizer_end, vocabulary_rows
from llmkit.tasks import Chat, Message

if TYPE_CHECKING:
    from llmkit.models.load import Loaded

__all__ = ["declare_ends", "end_id", "text_ends", "turn_ends"]

_REPLY = "llmkit-reply"
"""A reply that no template contains."""


def text_ends(loaded: Loaded) -> frozenset[int]:
    """The tokens that end any output: from the generation settings and the tokenizer."""
    named = _ids(loaded.model.generation_config.eos_token_id)
    if named and loaded.tokenizer.eos_token_id is None:
        return named
    end = tokenizer_end(loaded.tokenizer, vocabulary_rows(loaded.model))
    return named if end is None else named | {end}


def turn_ends(loaded: Loaded) -> frozenset[int]:
    """The tokens that end a reply: those of any output, of config.json, and the one the chat template adds after it."""
    rows = vocabulary_rows(loaded.model)
    found = _ids(_config(loaded).get("eos_token_id")) | _template_ends(loaded.tokenizer)
    return text_ends(loaded) | {token for token in found if rows is None or token < rows}


def end_id(loaded: Loaded) -> int:
    """The token that a model learns to end its output with."""
    ends = text_ends(loaded)
    if not ends:
        raise CheckpointError(
            f"{loaded.source.name} has no token that ends a text, so it cannot learn to stop",
            "add eos_token to its tokenizer_config.json",
        )
    own = loaded.tokenizer.eos_token_id
    return int(own) if own in ends else min(ends)


def declare_ends(loaded: Loaded) -> None:
    """List all end tokens in a model's generation settings, for programs that read no other file."""
    set_ends(loaded.model.generation_config, sorted(turn_ends(loaded)))


def _ids(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return frozenset(each for each in values if isinstance(each, int) and not isinstance(each, bool) and each >= 0)


_configs: WeakKeyDictionary[Any, Mapping[str, Any]] = WeakKeyDictionary()
_templates: WeakKeyDictionary[Any, tuple[Any, frozenset[int]]] = WeakKeyDictionary()


def _config(loaded: Loaded) -> Mapping[str, Any]:
    """The text part of config.json. Not the config object, whose class has default end tokens that no file names."""
    if loaded.model not in _configs:
        config = {} if loaded.source.gguf_file else loaded.source.config()
        part = config.get("text_config")
        _configs[loaded.model] = {**(part if isinstance(part, Mapping) else {}), **config}
    return _configs[loaded.model]


def _template_ends(tokenizer: Any) -> frozenset[int]:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return frozenset()
    if tokenizer not in _templates or _templates[tokenizer][0] != template:
        _templates[tokenizer] = template, _find_template_end(tokenizer)
    return _templates[tokenizer][1]


def _find_template_end(tokenizer: Any) -> frozenset[int]:
    """The first added token after a reply, found by rendering a reply before a question; empty if there is none."""
    turns = (Message("user", "?"), Message("assistant", _REPLY), Message("user", "?"))
    try:
        text, (between, _) = render_chat(tokenizer, Chat(turns)), reply_frame(tokenizer)
    except LlmkitError:  # rendering the prompt reports the error
        return frozenset()
    added = tokenizer.added_tokens_decoder
    # A reply whose header the model generates (gpt-oss) may be one of several messages of its turn.
    header = encode_text(tokenizer, between, special=False)
    if header and header[-1] in added and added[header[-1]].special:
        return frozenset()
    behind = encode_text(tokenizer, text.partition(_REPLY)[2], special=False)
    return frozenset([token for token in behind if token in added and str(added[token]).strip()][:1])
