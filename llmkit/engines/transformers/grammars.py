"""Outputs that conform to a JSON Schema, a regular expression or a list of texts, with the package llguidance.

Knows how a grammar is compiled for a model's tokenizer, and which tokens it allows next. A schema that llguidance
cannot enforce completely is refused with its words. Does not know where in an output the grammar applies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmkit.config.declaration import non_default
from llmkit.errors import MissingDependencyError, UsageError
from llmkit.heads.base import encode_text
from llmkit.heads.end_tokens import turn_ends
from llmkit.models.generation import vocabulary_rows

if TYPE_CHECKING:
    import torch

    from llmkit.config.settings import GenerationSettings
    from llmkit.models.load import Loaded

__all__ = ["Grammar", "grammar_of"]

_TEXT = '{"a_b": [-1.5e3, true, null], "C": "d: e\\\\f"}'
"""JSON that a tokenizer must represent without changing a byte."""
_WHITE_SPACE = r"(\n[ ]{0,40}|[ ])?"
"""Between the tokens of JSON: without a limit, small models add line breaks for ever."""
_compilers: WeakKeyDictionary[Any, _Compiler] = WeakKeyDictionary()


def grammar_of(loaded: Loaded, settings: GenerationSettings) -> str | None:
    """The grammar that the settings ask for, in llguidance's form; None if they ask for none.

    Raises:
        UsageError: it is invalid, or cannot be enforced with this tokenizer.
    """
    if not (asked := non_default(settings, "json_schema", "regex", "choice")):
        return None
    (name,) = asked
    if name == "json_schema":
        try:
            content = json.dumps(settings.json_schema, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise _unenforceable(name, str(error)) from error
    else:
        content = settings.regex or "|".join(map(re.escape, settings.choice))
    return _compiler(loaded).grammar(name, content)


class _Compiler:
    """A model's tokenizer as llguidance has it, and the grammars that were compiled for it last."""

    def __init__(self, loaded: Loaded) -> None:
        self.tokenizer = _made(loaded)
        self.grammar = lru_cache(maxsize=32)(self._compiled)

    def _compiled(self, name: str, content: str) -> str:
        matcher = _llguidance().LLMatcher
        try:
            if name == "json_schema":
                grammar = matcher.grammar_from_json_schema(content, overrides={"whitespace_pattern": _WHITE_SPACE})
            else:
                grammar = matcher.grammar_from_regex(content)
            problem = matcher.validate_grammar(grammar, self.tokenizer)
        except (TypeError, ValueError) as error:
            problem = str(error)
        if problem:
            raise _unenforceable(name, problem)
        return str(grammar)


def _unenforceable(name: str, problem: str) -> UsageError:
    reason = " ".join(problem.split())[:300]
    return UsageError(f"{name} cannot be enforced ({reason})", "simplify it", code="not_supported")


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            "json_schema, regex and choice need llguidance", 'pip install "llmkit[schema]"'
        ) from error
    return llguidance


def _compiler(loaded: Loaded) -> _Compiler:
    """The compiler of a model, made once."""
    if loaded.model not in _compilers:
        _compilers[loaded.model] = _Compiler(loaded)
    return _compilers[loaded.model]


def _made(loaded: Loaded) -> Any:
    _llguidance()
    from llguidance.hf import from_tokenizer

    rows = vocabulary_rows(loaded.model)
    tokenizer: Any = loaded.tokenizer
    try:
        made = from_tokenizer(tokenizer, n_vocab=rows, eos_token=sorted(turn_ends(loaded)))
        ids = encode_text(loaded.tokenizer, _TEXT, special=False)
        reason = "" if made.decode_bytes(list(ids)) == _TEXT.encode() else "its tokens cannot represent JSON"
    except Exception as error:  # noqa: BLE001 - Rust errors of several types
        reason = " ".join(str(error).split())[:200]
    if reason:
        raise UsageError(
            f"json_schema, regex and choice do not support the tokenizer of {loaded.source.name} ({reason})",
            "leave them out, or use a model with a byte-level tokenizer",
            code="not_supported",
        )
    return made


class Grammar:
    """The tokens that a grammar allows in one output."""

    def __init__(self, loaded: Loaded, grammar: str, is_free: Callable[[], bool]) -> None:
        """``is_free`` tells before each token whether it is not restricted."""
        self._is_free, self._free = is_free, False
        self._ends = sorted(turn_ends(loaded))
        self._tokenizer = _compiler(loaded).tokenizer
        self._matcher = _llguidance().LLMatcher(self._tokenizer, grammar)

    def apply(self, logits: torch.Tensor) -> None:
        """Exclude the tokens that the grammar does not allow next; after its end, all but the end tokens."""
        import torch

        self._free = self._is_free()
        if self._free:  # but the output must not end here
            logits[self._ends] = float("-inf")
            return
        bits = torch.zeros((self._tokenizer.vocab_size + 31) // 32, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), bits.numel() * bits.element_size())
        self._check()
        allowed = ((bits[:, None] >> torch.arange(32, dtype=torch.int32)) & 1).flatten().bool()
        excluded = torch.ones(len(logits), dtype=torch.bool)
        count = min(len(logits), self._tokenizer.vocab_size)
        excluded[:count] = ~allowed[:count]
        logits.masked_fill_(excluded.to(logits.device), float("-inf"))

    def push(self, token: int) -> None:
        if not self._free and not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:300]
            raise UsageError(f"the grammar cannot be enforced ({reason})", "simplify it", code="not_supported")
