"""Translation of a text of any length.

Knows the prompts, and translates a document segment by segment (`llmkit.text.document`). How languages are passed to a
model family is up to its `LanguageMap`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmkit.config.declaration import setting
from llmkit.config.settings import GenerationSettings, Options, TaskSettings
from llmkit.errors import InputError, UsageError
from llmkit.log import log
from llmkit.tasks.base import Task
from llmkit.tasks.output import Chunk, NoteCode, Output
from llmkit.tasks.recommended import STARTER, Recommended
from llmkit.tasks.types import Example, Generation, ModelView, PromptOptions, Result, Row, Step, Traits, Work
from llmkit.tasks.wording import LANGUAGE
from llmkit.text.languages import Language, LanguageMap, Route, find_language

if TYPE_CHECKING:
    from llmkit.text.document import Document

__all__ = ["Translation", "TranslationOptions", "TranslationSettings"]

_ROUTE = "_route"
"""Internal column with the languages of a row."""
_SHORTEST_RUNAWAY = 64
_MAX_RATIO = 10
"""Tokens of a translation per token of its source: some vocabularies spell out bytes of a script they lack."""
_UNSURE = 0.7
"""Below this probability the detected language is reported as a guess."""


_ANY_PAIR = "facebook/m2m100_418M"
# The two-letter codes of Helsinki-NLP's group.
_ROMANCE = frozenset(("fr", "wa", "oc", "ca", "rm", "es", "pt", "gl", "an", "it", "co", "sc", "ro", "la"))


def _opus(pair: str, parameters: str, megabytes: int, languages: str) -> Recommended:
    name = f"Helsinki-NLP/opus-mt-{pair}"
    return Recommended(name, parameters, megabytes, "Apache-2.0", languages, ".bin weights only")


def _language_columns(*sides: str) -> tuple[str, ...]:
    """Common names of the column with the language of one side."""
    forms = ("{}_lang", "{}_language", "{}lang", "{}language", "lang_{}", "{}_lang_code", "{}_language_code")
    return tuple(form.format(side) for side in sides for form in forms)


@dataclass(frozen=True, kw_only=True)
class TranslationSettings(TaskSettings):
    """Which languages a text is translated between, by English name or ISO 639 code."""

    source: str | None = setting(
        None, "Language of the text.", option="from", metavar="LANGUAGE", shown_default="detected"
    )
    target: str | None = setting(
        None, "Language to translate into, by English name or ISO 639 code.", option="to", metavar="LANGUAGE"
    )


class TranslationOptions(Options, total=False):
    """The fields of `TranslationSettings` too, as keyword arguments."""

    source: str | None
    target: str | None


@dataclass(frozen=True)
class _Wording:
    instruction: str
    """The user's message; ``pair`` is the names of the languages that are known."""
    pair: tuple[str, str]
    plain: str
    """The prompt for a model without a chat template."""
    unknown: tuple[str, str]
    """In place of the names of unknown languages."""


_WORDINGS = {
    "en": _Wording(
        "Translate the following text {pair}. Reply with the translation only.\n\n{text}",
        ("from {} ", "to {}"),
        "{source}: {text}\n{target}:",
        ("Text", "Translation"),
    ),
    "zh": _Wording(
        "请把下面的文本{pair}。只回复译文。\n\n{text}",
        ("从{}", "翻译成{}"),
        "{source}：{text}\n{target}：",
        ("原文", "译文"),
    ),
}


class Translation(Task):
    name = "translation"
    verb = "translate"
    help = """Translate a text of any length.

    White space, Markdown, code, addresses and placeholders stay unchanged.

    Examples:
        llmkit translate "Good morning, my friend." --to French
        llmkit translate subtitles.srt --from en --to de
    """
    synonyms = ("translator", "mt", "nmt")
    sample_options = {"from": "en", "to": "fr"}
    input_column = "source"
    columns = ("source",)
    optional_columns = ("source_lang", "target_lang")
    settings_in_rows = ("source", "target")
    target_column = "target"
    aliases = {
        "source": ("source", "src", "input", "sentence1", "original", "原文"),
        "target": ("target", "tgt", "output", "sentence2", "translation", "译文", "譯文", "訳文"),
        "source_lang": (*_language_columns("source", "src", "from"), "from", "源语言", "原文语言"),
        "target_lang": (*_language_columns("target", "tgt", "trg", "to"), "to", "目标语言", "译文语言"),
        "language_pair": ("language_pair", "lang_pair", "langpair", "lp", "pair", "direction", "语言对", "翻译方向"),
    }
    shapes = ("translations", "languages")
    max_new_tokens = 512
    stop_loops = True
    overflow = "chunk"
    allowed_overflow = ("error", "truncate", "chunk")
    settings_class = TranslationSettings
    settings: TranslationSettings
    output_fields = ("source_language", "target_language")
    recommended = (
        Recommended(
            *("Helsinki-NLP/opus-mt-{source}-{target}", "75M", 300, "Apache-2.0 or CC-BY-4.0", "one pair"),
            "the default if it exists for the pair; mostly .bin weights",
        ),
        _opus("ROMANCE-en", "78M", 312, "Romance to English"),
        _opus("en-ROMANCE", "78M", 312, "English to Romance"),
        _opus("mul-en", "77M", 310, "120 languages to English"),
        _opus("en-mul", "77M", 310, "English to 120 languages"),
        Recommended(
            *(_ANY_PAIR, "484M", 1940, "MIT", "any pair of 100 languages"),
            "the default for all other pairs; .bin weights only",
        ),
        STARTER.noted(f"{STARTER.note}; knows English only"),
        Recommended(
            *("facebook/nllb-200-distilled-600M", "615M", 2460, "CC-BY-NC-4.0", "any pair of 196 languages"),
            "better; not for commercial use; .bin weights only",
        ),
    )
    wordings = _WORDINGS
    names_languages = True
    suits_translators = True
    metrics = ("sacrebleu",)

    def __init__(self, settings: TranslationSettings | None = None) -> None:
        super().__init__(settings)
        self.source = find_language(self.settings.source) if self.settings.source else None
        self.target = find_language(self.settings.target) if self.settings.target else None
        if self.source is not None and self.source == self.target:
            raise UsageError(f"source and target are both {self.source.name}", "name two languages", code="no_effect")

    def default_models(self, text: str = "", fields: Collection[str] = ()) -> tuple[str, ...]:
        """The models for the pair, the most specific first, and then the one for any pair."""
        if not set(self.optional_columns).isdisjoint(fields):
            return (_ANY_PAIR,)
        _require(self.target)
        source = self.source
        if source is None and any(map(str.isalpha, text)):
            source, _ = _guess(text, None, self.target)
        pairs = [] if source is None or self.target is None else _pairs(source.alpha2, self.target.alpha2)
        return (*(f"Helsinki-NLP/opus-mt-{pair}" for pair in pairs), _ANY_PAIR)

    def target_language(self, row: Row) -> str | None:
        with suppress(InputError):  # a row without an answer
            _, target = self._languages(row)
            return None if target is None else target.tag
        return None

    def group(self, row: Row) -> str | None:
        """The language pair, ``und`` in place of a language that is not set."""
        with suppress(InputError):
            pair = self._languages(row)
            return None if not any(pair) else "-".join("und" if each is None else each.tag for each in pair)
        return None

    def _languages(self, row: Row) -> tuple[Language | None, Language | None]:
        """Source and target language of a row: its own or, where it names none, those of the settings."""
        source, target = (_named_in(row, column) for column in self.optional_columns)
        return source or self.source, target or self.target

    def instruct(self, row: Row) -> str:
        wording: _Wording = self.wording(row)
        named = zip(wording.pair, self._names(row), strict=True)
        pair = "".join(form.format(name) for form, name in named if name)
        return wording.instruction.format(pair=pair, text=row[self.input_column])

    def _names(self, row: Row) -> tuple[str, str]:
        """The names of the languages of a row in the language of its prompt; empty if unknown."""
        route, tag = self._route_of(row), row.get(LANGUAGE, "en")
        source, target = (language.name_in(tag) if language else "" for language in (route.source, route.target))
        return source, target

    def template_variables(self, row: Row) -> dict[str, str]:
        source, target = self._names(row)
        return {"source_language": source, "target_language": target}

    def own_prefix(self, row: Row, traits: Traits) -> str:
        return "" if traits.continues else self._route_of(row).prefix

    def plain_prompt(self, row: Row, traits: Traits) -> str:
        route, text = self._route_of(row), str(row[self.input_column])
        if not traits.continues:
            return f"{route.prefix}{text}"
        wording: _Wording = self.wording(row)
        source, target = (name or unknown for name, unknown in zip(self._names(row), wording.unknown, strict=True))
        return wording.plain.format(source=source, target=target, text=text)

    def stop(self, traits: Traits) -> tuple[str, ...]:
        return ("\n",)

    def route(self, row: Row, traits: Traits) -> Route | None:
        return self._route_of(row)

    def _route_of(self, row: Row) -> Route:
        route = row.get(_ROUTE)
        return route if isinstance(route, Route) else Route(*self._languages(row))

    def check_compatible(self, traits: Traits, prompt_options: PromptOptions) -> None:
        super().check_compatible(traits, prompt_options)
        if traits.languages is not None and (self.source is not None or self.target is not None):
            self._check_pair(traits.languages)

    def _check_pair(self, languages: LanguageMap) -> None:
        """Refuse an unsupported language pair before processing any text; rows may name the side that is not set."""
        known = [
            language is not None or (members is not None and len(members) == 1)
            for language, members in ((self.source, languages.sources), (self.target, languages.targets))
        ]
        if all(known):
            languages.route(self.source, self.target)

    def examples(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> tuple[Example, ...]:
        text = str(row[self.input_column]).strip()
        if not any(character.isalpha() for character in text):  # at inference it is not passed to the model
            return ()
        from llmkit.text.lines import unwrap

        text = text if traits.chat else unwrap(text)
        route = self._route_for(row, text, traits, lambda _code, text: log.info("%s", text))
        return super().examples({**row, self.input_column: text, _ROUTE: route}, traits, prompt_options)

    def steps(self, row: Row, model: ModelView) -> Work:
        # Imported here, since these modules compile many patterns, which would slow down --help.
        from llmkit.text.document import Document, segments_of
        from llmkit.text.lines import unwrap
        from llmkit.text.markup import is_catalog
        from llmkit.text.protected import survives

        text = str(row[self.input_column])
        if is_catalog(text):
            raise InputError(
                "the text is a gettext catalogue (PO), whose translations belong in msgstr",
                "translate its msgid texts as rows of a file (`input`), and fill them in with a tool for PO files",
                code="unsupported_format",
            )
        if not any(character.isalpha() for character in text):
            return _in_languages(Result(text=text), Route(*self._languages(row)))
        route = self._route_for(row, text, model.traits, model.note)
        self._note_undeclared(route, model)
        row = {**row, _ROUTE: route}
        room = model.room(row)
        if room is not None:
            # Leave room for the translation: some languages take twice the tokens of others. A lower limit of the
            # caller's cuts translations, but does not divide the source.
            room = max(1, min(room, max(model.max_new_tokens, model.default_max_new_tokens) // 2))
        # Chat models handle the line breaks of a poem; other models get unwrapped lines.
        line = str if model.traits.chat else unwrap
        tag, by_sentence = route.source.tag if route.source else "en", not model.traits.is_instructed
        segments = segments_of(text, tag, by_sentence=by_sentence, room=room, count=model.count)
        document = Document(text, list(segments), model.emit)
        first = document.segments[0] if len(document.segments) == 1 else None
        if first is not None and first.text == text.strip() and not first.lines and survives(text, ""):
            segment = document.segments[0]
            before, after = text[: segment.start], text[segment.start + len(segment.text) :]
            model.emit(before)
            (raw,) = yield self._step([{**row, self.input_column: line(segment.text)}], model, final=True)
            result = self.finish(raw)
            others = tuple(replace(other, text=f"{before}{other.text}{after}") for other in result.alternatives)
            return _in_languages(replace(result, text=f"{before}{result.text}{after}", alternatives=others), route)
        document.advance()
        rows = [{**row, self.input_column: line(segment.words)} for segment in document.segments]
        yield self._step(rows, model, each=lambda index, raw: document.put(index, self.parse(raw.text)))
        yield from self._retranslate(document, row, model)
        empty = sum(not segment.translation for segment in document.segments)
        if empty:
            share = f"{empty} of {len(document.segments)} sentences"
            model.note("sentences_empty", f"the model's output was empty for {share}")
        chunks = tuple(
            Chunk(segment.start, segment.start + len(segment.text), segment.translation or "")
            for segment in document.segments
        )
        return _in_languages(Result(text=document.translated, chunks=chunks), route)

    def trivial_answers(self, row: Row) -> dict[str, str]:
        return {"copy of the source": str(row[self.input_column])}

    def remarks(self, output: Output, row: Row, settings: GenerationSettings) -> Iterator[str]:
        if output.chunks:
            yield f"translated: {len(output.chunks)} parts, {output.usage.prompt_tokens} tokens in"

    def _route_for(self, row: Row, text: str, traits: Traits, note: Callable[[NoteCode, str], None]) -> Route:
        source, target = self._languages(row)
        try:
            return _find_route(source, target, text, traits, note)
        except UsageError as error:
            names_its_own = not row.keys().isdisjoint(self.optional_columns)
            if not names_its_own and (source is not None or target is None):
                raise
            # The language of this text was not detected or is not supported; other rows may be fine.
            raise InputError(error.problem, *error.fixes, code=error.code) from error

    def note_languages(self, row: Row, model: ModelView) -> None:
        """Nothing: the languages are known only once that of the text is detected."""

    def _note_undeclared(self, route: Route, model: ModelView) -> None:
        declared = frozenset() if model.traits.languages else model.traits.declared_languages
        wanted = [each for each in (route.source, route.target) if each is not None]
        if missing := [each.name for each in wanted if declared and each.alpha2 not in declared]:
            names = [find_language(tag).name for tag in sorted(declared)]
            only = ", ".join(names[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")
            problem = f"the model is declared for {only}, not for {' or '.join(missing)}"
            fix = "check the translation, or choose another model with `model`"
            model.note("language_not_declared", f"{problem}; {fix}")

    def _step(self, rows: Sequence[Row], model: ModelView, **options: Any) -> Step:
        """Rows to translate, with output lengths that no translation has, whatever the languages and the vocabulary."""
        sizes = [model.count(str(row[self.input_column])) for row in rows]
        return Step(rows, plausible_tokens=[_SHORTEST_RUNAWAY + _MAX_RATIO * size for size in sizes], **options)

    def _retranslate(self, document: Document, row: Row, model: ModelView) -> Work:
        """Retranslate segments whose protected spans or lines were lost, in pieces around them."""
        from llmkit.text.document import on_one_line

        unsettled = [segment for segment in document.segments if not segment.settled]
        pieces = {id(segment): segment.pieces() for segment in unsettled}
        rows = [
            {**row, self.input_column: piece.text}
            for segment in unsettled
            for piece in pieces[id(segment)]
            if piece.translate
        ]
        raws: Sequence[Generation] = (yield self._step(rows, model)) if rows else ()
        texts = iter(raws)
        for segment in unsettled:
            segment.settle(
                "".join(
                    on_one_line(self.parse(next(texts).text)) if piece.translate else piece.text
                    for piece in pieces[id(segment)]
                )
            )
        document.advance()
        return Result(text="")


def _require(target: Language | None) -> None:
    """Raise `UsageError` if there is no target language."""
    if target is None:
        raise UsageError(
            "the language to translate into is missing",
            "name it with `target`, such as `target=fr`",
            code="language_missing",
        )


def _named_in(row: Row, column: str) -> Language | None:
    """The language that a row names in a column; None if it has none there."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return find_language(value if isinstance(value, str) else repr(value))
    except UsageError as error:
        raise InputError(f"{column}: {error.problem}", *error.fixes, code=error.code) from error


def _find_route(
    source: Language | None,
    target: Language | None,
    text: str,
    traits: Traits,
    note: Callable[[NoteCode, str], None],
) -> Route:
    """How the languages of a text are passed to the model; an unknown source language is detected."""
    languages = traits.languages
    if languages is None and not traits.is_instructed:
        if source or target:
            note(
                "languages_unknown",
                "the languages of this model are unknown, so source and target are not passed to it",
            )
        return Route(source, target)
    if languages is None:
        _require(target)
    if source is None and (languages is None or languages.sources is None or len(languages.sources) > 1):
        source, sure = _guess(text, None if languages is None else languages.sources, target)
        if sure:
            note("language_detected", f"the text is in {source.name}")
        else:
            guess = f"the text is assumed to be in {source.name}, which is a guess"
            note("language_guessed", f"{guess}; name its language with `source`")
    if languages is not None:
        return languages.route(source, target)
    if source == target and source is not None:
        raise UsageError(
            f"the text is in {source.name} already",
            "name another language with `target`, or the text's with `source`",
            code="no_effect",
        )
    return Route(source, target)


def _guess(text: str, among: frozenset[Language] | None, target: Language | None) -> tuple[Language, bool]:
    """The language of a text, and whether it is certain."""
    from llmkit.text.detection import detect_language

    found = detect_language(text, among)
    language, english = found.language, find_language("en")
    # A few ASCII words fit many languages; without evidence, English is the best guess.
    if found.probability < _UNSURE / 2 and text.isascii() and english != target:
        language = english if among is None or english in among else language
    return language, found.probability >= _UNSURE


def _pairs(source: str, target: str) -> list[str]:
    """The Marian models for a pair, the most specific first. Group models exist only from and to English."""
    if source == target:
        return []
    pairs = [f"{source}-{target}"]
    if target == "en":
        pairs += [*(["ROMANCE-en"] if source in _ROMANCE else []), "mul-en"]
    elif source == "en":
        pairs += [*(["en-ROMANCE"] if target in _ROMANCE else []), "en-mul"]
    return pairs


def _in_languages(result: Result, route: Route) -> Result:
    source, target = (language.tag if language else None for language in (route.source, route.target))
    return replace(result, source_language=source, target_language=target)
