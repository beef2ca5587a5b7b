"""Outputs that conform to a JSON Schema, a regular expression or a list of texts, with the package llguidance.

Knows how a grammar is compiled for a model's tokenizer, and which tokens it allows next. What llguidance cannot enforce
completely, or not in time, is refused with its words. Does not know where in an output the grammar applies.

`compiled` may be called in any thread, and remembers its results: a server compiles before the model's thread needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmkit.config.declaration import non_default
from llmkit.errors import InputError, MissingDependencyError, UsageError
from llmkit.heads.end_tokens import turn_ends
from llmkit.heads.tool_calls import forced_calls
from llmkit.models.generation import vocabulary_rows

if TYPE_CHECKING:
    import torch

    from llmkit.config.settings import GenerationSettings
    from llmkit.models.load import Loaded
    from llmkit.tasks import Chat

__all__ = ["GRAMMARS", "Compiled", "Grammar", "call_grammar", "compiled"]

GRAMMARS = ("json_schema", "regex", "choice")
"""The settings that ask for a grammar."""
Compiled = Any
"""A grammar before the first token, of which every output has a copy; llguidance has no public type for it."""

_TEXT = '{"a_b": [-1.5e3, true, null], "C": "d: e\\\\f"}'
"""JSON that a tokenizer must represent without changing a byte."""
_OPTIONS = {
    "whitespace_pattern": r"(\n[ ]{0,40}|[ ])?",  # without a limit, small models add line breaks for ever
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
}
"""How a schema becomes a grammar. All of it is set, since a schema could change it otherwise, by ``x-guidance``."""
_LIMITS = {"initial_lexer_fuel": 400_000, "max_grammar_size": 20_000, "max_lexer_states": 20_000}
"""What takes more is refused: a second of work to compile, or a tenth of one for a token. An enum of 20,000 words needs
less; llguidance's own limits allow minutes."""
_MAX_MULTIPLE = 10_000
"""Digits of `multipleOf` as a number: an automaton has that many states, before llguidance checks any limit."""
_compilers: WeakKeyDictionary[Any, _Compiler] = WeakKeyDictionary()


def compiled(loaded: Loaded, settings: GenerationSettings) -> Compiled | None:
    """The grammar that the settings ask for; None if they ask for none.

    Raises:
        UsageError: it is invalid, or cannot be enforced with this tokenizer.
    """
    if not (asked := non_default(settings, *GRAMMARS)):
        return None
    (name,) = asked
    if name == "json_schema":
        try:
            content = json.dumps(settings.json_schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _unenforceable(name, str(error)) from error
    else:
        content = settings.regex or "|".join(map(re.escape, settings.choice))
    return _compiler(loaded).grammar(name, content)


def call_grammar(loaded: Loaded, chat: Chat) -> Compiled:
    """The grammar of a call of one of the tools that ``chat.tool_choice`` allows.

    Raises:
        UsageError: calls, or the parameters of a tool, cannot be enforced with this model.
    """
    special = {
        token.content: number for number, token in loaded.tokenizer.added_tokens_decoder.items() if token.special
    }
    marks = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def literal(text: str) -> str:
        """A text as llguidance has it: special tokens by their ids."""
        found, at = [], 0
        for mark in marks.finditer(text):
            found += [text[at : mark.start()], f"<[{special[mark[0]]}]>"]
            at = mark.end()
        parts = [*found, text[at:]]
        return " ".join(
            part if place % 2 else json.dumps(part, ensure_ascii=False) for place, part in enumerate(parts) if part
        )

    calls = forced_calls(loaded.tokenizer, chat)
    rules = [f"start: {' | '.join(f'call{place}' for place in range(len(calls)))}"]
    for place, call in enumerate(calls):
        try:
            _refuse_weakened(call.schema)
            schema = json.dumps({**call.schema, "x-guidance": _OPTIONS}, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _unenforceable("tool_choice", str(error)) from error
        rules += [
            f"call{place}: {literal(call.before)} arguments{place} {literal(call.after)}",
            f"arguments{place}: %json {schema}",
        ]
    return _compiler(loaded).grammar("tool_choice", "\n".join(rules))


class _Compiler:
    """A model's tokenizer as llguidance has it, and the grammars that were compiled for it last."""

    def __init__(self, loaded: Loaded) -> None:
        self.tokenizer = _made(loaded)
        self.grammar = lru_cache(maxsize=16)(self._compiled)

    def _compiled(self, name: str, content: str) -> Compiled:
        module = _llguidance()
        matcher, limits = module.LLMatcher, module.LLParserLimits(verbose_errors=False, **_LIMITS)
        try:
            if name == "json_schema":
                _refuse_weakened(json.loads(content))
                grammar = matcher.grammar_from_json_schema(content, overrides=_OPTIONS)
            elif name == "tool_choice":
                grammar = matcher.grammar_from_lark(content)
            else:
                grammar = matcher.grammar_from_regex(content)
            _, problems = matcher.validate_grammar_with_warnings(grammar, self.tokenizer, limits=limits)
        except (TypeError, ValueError, RecursionError) as error:
            problems = [str(error)]
        if problems:
            raise _unenforceable(name, problems[0])
        made = matcher(self.tokenizer, grammar, log_level=0, limits=limits)
        made.compute_bitmask()  # the first one is the slowest, and fails if there is no first token
        if made.is_error():
            raise _unenforceable(name, f"it allows no first token: {made.get_error()}")
        return made


def _refuse_weakened(schema: Any) -> None:
    """Refuse what llguidance takes, but neither enforces nor compiles in time.

    Raises:
        ValueError: with the reason.
    """
    for part in _objects(schema):
        least, multiple = part.get("minProperties"), part.get("multipleOf")
        closed = part.get("additionalProperties") is False and not part.get("patternProperties")
        if isinstance(least, int) and least > 1 and not closed:
            raise ValueError("minProperties above 1 requires additionalProperties: false, since names may be repeated")
        if isinstance(multiple, int | float) and _digits(multiple) > _MAX_MULTIPLE:
            raise ValueError(f"multipleOf {multiple} has too many digits")


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a value."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _digits(number: float) -> int:
    """A number without its decimal point: 25 for 0.25."""
    _, digits, exponent = Decimal(str(number)).as_tuple()
    return int(int("".join(map(str, digits))) * 10 ** min(max(int(exponent), 0), 10))


def _unenforceable(name: str, problem: str) -> UsageError:
    fix = "use anyOf in place of oneOf" if "oneOf" in problem else "simplify it"
    reason = _short(problem).partition(". Enable ")[0]  # an option that would weaken it
    return UsageError(f"{name} cannot be enforced ({reason})", fix, code="not_supported")


def _short(problem: str) -> str:
    return " ".join(problem.replace("<non-verbose/>", "").split())[:300]


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
    found = _compilers.get(loaded.tokenizer)
    return found or _compilers.setdefault(loaded.tokenizer, _Compiler(loaded))


def _made(loaded: Loaded) -> Any:
    _llguidance()
    from llguidance.hf import from_tokenizer

    tokenizer: Any = loaded.tokenizer
    try:
        made = from_tokenizer(tokenizer, n_vocab=vocabulary_rows(loaded.model), eos_token=sorted(turn_ends(loaded)))
        same = made.decode_bytes(made.tokenize_str(_TEXT)) == _TEXT.encode()
        reason = "" if same else "its tokens cannot represent JSON"
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

    def __init__(
        self,
        loaded: Loaded,
        grammar: Compiled,
        is_free: Callable[[], bool],
        openings: Sequence[Sequence[int]] = (),
    ) -> None:
        """A grammar at the beginning of an output.

        Args:
            is_free: tells before each token whether it is not restricted.
            openings: tokens that the output may begin with in place of the grammar's, after which it is free.
        """
        self._is_free, self._free = is_free, False
        self._ends = sorted(turn_ends(loaded))
        self._compiled, self._matcher = grammar, grammar.deep_copy()
        self._openings = [list(each) for each in openings]
        self._size = _compiler(loaded).tokenizer.vocab_size

    def apply(self, logits: torch.Tensor) -> None:
        """Exclude the tokens that the grammar does not allow next; after its end, all but the end tokens."""
        was_free, self._free = self._free, self._is_free()
        if self._free:  # but the output must not end here
            logits[self._ends] = float("-inf")
            return
        if was_free:  # what opened the free part may have been a beginning of the grammar too
            self._matcher, self._openings = self._compiled.deep_copy(), []
        allowed = self._mask(len(logits))
        allowed[[opening[0] for opening in self._openings]] = True
        logits.masked_fill_(~allowed.to(logits.device), float("-inf"))

    def _mask(self, rows: int) -> torch.Tensor:
        import torch

        allowed = torch.zeros(rows, dtype=torch.bool)
        if self._matcher is not None:
            bits = torch.zeros((self._size + 31) // 32, dtype=torch.int32)
            self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), bits.numel() * bits.element_size())
            self._check()
            count = min(rows, self._size)
            allowed[:count] = ((bits[:, None] >> torch.arange(32, dtype=torch.int32)) & 1).flatten()[:count].bool()
        return allowed

    def push(self, token: int) -> None:
        """Add a generated token."""
        if self._free:
            return
        begun = [opening for opening in self._openings if opening[0] == token]
        self._openings = [opening[1:] for opening in begun if len(opening) > 1]
        if self._matcher is None or self._matcher.is_stopped():
            return
        if begun and not self._matcher.validate_tokens([token]):
            self._matcher = None  # the output begins as only an opening does
            return
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(
                f"the grammar cannot be enforced here ({_short(self._matcher.get_error())})",
                "simplify it",
                code="not_supported",
            )
