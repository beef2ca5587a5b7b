"""How a model writes calls of tools, learned from its chat template, and how they are parsed from a reply.

A template shows the form of calls where it renders earlier ones: calls with known names and arguments are rendered, and
what surrounds them is the form. Arguments are JSON, tags, or Python's keyword arguments. Knows texts only.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex

from llmkit.tasks import ToolCall

__all__ = ["Call", "CallFormat", "CallTexts", "RenderCalls", "learn_format"]

RenderCalls = Callable[[str, Sequence[ToolCall]], str | None]
"""Renders a reply with this content and these calls, after a user's message; None if the template refuses it."""

_NAMES, _KEYS, _VALUES = ("qxnamea", "qxnameb"), ("qxkeya", "qxkeyb"), ("qxvala", "qxvalb")
_IDS = (
    ("call00001", "call00002"),  # nine letters and digits, as Mistral's templates require
    (f"functions.{_NAMES[0]}:0", f"functions.{_NAMES[1]}:1"),  # Kimi K2 renders the id in place of the name
)
_NAME = r"(?P<name>[^\s\"'`<>{}()\[\]|]+?)"
_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into strings
_MARK = r"<[^<>]+>|\[[^\[\]]+\]|[^<\[\s]+|\S"


@dataclass(frozen=True)
class Call:
    """A parsed call."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True)
class CallTexts:
    """The texts around the arguments of a call, if those are JSON: ``before`` and ``after``, with placeholders."""

    before: str
    after: str
    id: str

    def around(self, name: str, number: int) -> tuple[str, str]:
        """The texts around the arguments of a call of a tool; ``number``: how many calls the conversation has."""
        own = f"functions.{name}:{number}" if _NAMES[0] in self.id else f"call{number + 1:05d}"
        quoted = json.dumps(name, ensure_ascii=False)[1:-1]
        before, after = (text.replace(self.id, own).replace(_NAMES[0], quoted) for text in (self.before, self.after))
        return before, after


Body = Callable[[str, int, Mapping[str, str | None]], tuple[list[Call], int]]
"""Parses the calls of a text from a place on, after an opening with these captured groups; returns where they end.

Raises `ValueError` for what is no call."""


@dataclass(frozen=True)
class CallFormat:
    """The form of a model's calls."""

    begins: Any
    """Pattern of the text from which on a reply has calls."""
    opens: Any
    """Pattern of what precedes the first call."""
    continues: Any
    """Pattern of what precedes a call that follows another one."""
    closes: Any
    """Pattern of what follows a call."""
    body: Body
    bare: bool = False
    """Nothing marks a call, so that only names of known tools count."""
    typed: bool = True
    """Values have types; otherwise they are texts, whose types are those of the tool's parameters."""
    texts: tuple[str, ...] = ()
    """What the form consists of, to find the special tokens in it."""
    one: CallTexts | None = None
    """How a single call is generated; None if its arguments are not JSON."""

    def parse(self, text: str, names: Sequence[str]) -> tuple[str, list[Call], int]:
        """The text without its calls, the calls, and the number of those that cannot be parsed and stay in the text."""
        kept, calls, broken, last, place = [], [], 0, 0, 0
        after_call = False
        while found := (after_call and self.continues.match(text, place)) or self.opens.search(text, place):
            try:
                parsed, end = self.body(text, found.end(), found.groupdict())
                if self.bare and not all(call.name in names for call in parsed):
                    break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                broken, after_call, place = broken + 1, False, max(found.end(), place + 1)
                continue
            kept.append(text[last : found.start()])
            calls += parsed
            last = place = self.closes.match(text, end).end()
            after_call = True
        return "".join((*kept, text[last:])), calls, broken


def learn_format(render: RenderCalls) -> CallFormat | None:
    """The form in which a template renders calls; None if it cannot be told."""
    for ids in _IDS:
        calls = [_call(name, ids[place], {_KEYS[place]: _VALUES[place]}) for place, name in enumerate(_NAMES)]
        one, two = _middle(render, calls[:1]), _middle(render, calls)
        both = _middle(render, [_call(_NAMES[0], ids[0], dict(zip(_KEYS, _VALUES, strict=True)))])
        if one is None or _KEYS[0] not in one:
            continue
        two = None if two is None else two.replace(ids[1], ids[0])
        for learn in (_json_format, _python_format, _tag_format):
            if (found := learn(one, two, both, ids[0])) is not None:
                return replace(found, one=_texts_of(one, ids[0]))
    return None


def _texts_of(one: str, id: str) -> CallTexts | None:  # noqa: A002
    """What surrounds the arguments of a rendered call; None if they are not JSON."""
    for found in regex.finditer(r"{", one):
        try:
            value, end = _DECODER.raw_decode(one, found.start())
        except ValueError:
            continue
        if value == {_KEYS[0]: _VALUES[0]}:
            return CallTexts(one[: found.start()].lstrip(), one[end:].rstrip(), id)
    return None


def _call(name: str, id: str, arguments: dict[str, Any]) -> ToolCall:  # noqa: A002
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


def _middle(render: RenderCalls, calls: Sequence[ToolCall]) -> str | None:
    """What a template renders for calls, without what it renders around every reply."""
    plain, text = render("Qx0zQ", ()), render("", calls)
    if plain is None or text is None:
        return None
    start = len(_whole_marks(_common_prefix(plain, text)))
    end = len(_whole_marks(_common_suffix(plain[start:], text[start:]), left=True))
    return text[start : len(text) - end]


def _common_prefix(left: str, right: str) -> str:
    pairs = zip(left, right, strict=False)
    return left[: next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))]


def _common_suffix(left: str, right: str) -> str:
    return _common_prefix(left[::-1], right[::-1])[::-1]


# Calls as JSON.


def _json_format(one: str, two: str | None, _both: str | None, id: str) -> CallFormat | None:  # noqa: A002
    if (place := _json_at(one, _KEYS[0])) is None:
        return None
    start, end = place
    value = json.loads(one[start:end])
    listed = isinstance(value, list)
    item = value[0] if listed else value
    to_arguments, to_name = _path(item, {_KEYS[0]: _VALUES[0]}), _path(item, _NAMES[0])
    before, after = one[:start], one[end:]
    if to_arguments is None or (to_name is None and _NAMES[0] not in before):
        return None
    to_id = _path(item, id)
    between = None
    if two is not None and not listed and (other := _json_at(two, _KEYS[1])) is not None:
        first = _json_at(two, _KEYS[0])
        between = two[first[1] : other[0]] if first else None
    head = "" if before.strip() else r"\s*".join(map(regex.escape, _tokens(one[start:end].partition(":")[0]))) + r"\s*:"

    def body(text: str, at: int, groups: Mapping[str, str | None]) -> tuple[list[Call], int]:
        found, stop = _DECODER.raw_decode(text, at)
        items = found if listed and isinstance(found, list) else [found]
        return [_from_json(each, groups, to_name, to_arguments, to_id) for each in items], stop

    return _framed(before, after, between, id, body, head, r"(?=[\[{])")


def _tokens(text: str) -> list[str]:
    return regex.findall(r'[\[{,]|"[^"]*"', text)  # type: ignore[no-any-return]


def _json_at(text: str, key: str) -> tuple[int, int] | None:
    """Start and end of the outermost JSON value with a key."""
    for found in regex.finditer(r"[\[{]", text):
        try:
            _, end = _DECODER.raw_decode(text, found.start())
        except ValueError:
            continue
        if key in text[found.start() : end]:
            return found.start(), end
    return None


def _path(value: Any, wanted: object) -> tuple[str, ...] | None:
    """The keys that lead to a value, which may be JSON in a string."""
    if value == wanted or (isinstance(value, str) and isinstance(wanted, dict) and _loaded(value) == wanted):
        return ()
    for key, inner in value.items() if isinstance(value, dict) else ():
        if (path := _path(inner, wanted)) is not None:
            return (key, *path)
    return None


def _loaded(value: Any) -> Any:
    """A value, or what it is if it is JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return _DECODER.decode(value)
    except ValueError:
        return value


def _from_json(
    item: Any,
    groups: Mapping[str, str | None],
    to_name: tuple[str, ...] | None,
    to_arguments: tuple[str, ...],
    to_id: tuple[str, ...] | None,
) -> Call:
    name = groups.get("name") if to_name is None else _at(item, to_name)
    arguments = _loaded(_at(item, to_arguments))
    if arguments is None and to_name is not None:
        arguments = {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("not a call")
    own = groups.get("id") if to_id is None else _at(item, to_id)
    return Call(name, arguments, own if isinstance(own, str) else "")


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


# Calls as Python.


def _python_format(one: str, _two: str | None, _both: str | None, id: str) -> CallFormat | None:  # noqa: A002
    call = regex.search(rf"\[\s*{_NAMES[0]}\({_KEYS[0]}=(['\"]){_VALUES[0]}\1\)\s*\]", one)
    if call is None:
        return None
    before, after = one[: call.start()], one[call.end() :]
    close = next(iter(_marks(after)), r"\Z")

    def body(text: str, at: int, _groups: Mapping[str, str | None]) -> tuple[list[Call], int]:
        end = regex.search(rf"{close}|\Z", text, pos=at).start()
        (node,) = ast.parse(text[at:end].strip()).body
        calls = node.value.elts if isinstance(node, ast.Expr) and isinstance(node.value, ast.List) else []
        if not calls:
            raise ValueError("not a list of calls")
        return [_from_python(each) for each in calls], end

    return _framed(before, after, None, id, body, "" if before.strip() else r"\[\s*\w[\w.]*\(", r"(?=\[)")


def _from_python(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call")
    arguments = {str(each.arg): ast.literal_eval(_Constants().visit(each.value)) for each in node.keywords}
    return Call(ast.unparse(node.func), arguments)


class _Constants(ast.NodeTransformer):
    """JSON's constants in Python, which models mix."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        known = {"true": True, "false": False, "null": None}
        return ast.Constant(known[node.id]) if node.id in known else node


# Calls as tags.


def _tag_format(one: str, two: str | None, both: str | None, id: str) -> CallFormat | None:  # noqa: A002
    places = [one.find(text) for text in (_NAMES[0], _KEYS[0], _VALUES[0])]
    if both is None or -1 in places or places != sorted(places) or _KEYS[1] not in both:
        return None
    name, key, value = places
    to_key, post = one[name + len(_NAMES[0]) : key], one[value + len(_VALUES[0]) :]
    equals = one[key + len(_KEYS[0]) : value]
    between = both[both.index(_VALUES[0]) + len(_VALUES[0]) : both.index(_KEYS[1])]
    tail = _whole_marks(_common_prefix(between, post))
    head = between[len(tail) :]
    if not tail.strip() or not head.strip() or not to_key.endswith(head):
        return None
    before, after = one[:name] + _NAMES[0] + to_key[: -len(head)], post[len(tail) :]
    again = None
    if two is not None and _NAMES[1] in two:
        cut = two.index(_VALUES[0]) + len(_VALUES[0]) + len(tail)
        again = two[cut : two.index(_NAMES[1])] + _NAMES[1] + to_key[: -len(head)]
    argument = regex.compile(
        rf"{_pattern(head, id)}(?P<key>.+?){_pattern(equals, id, line=True)}"
        rf"(?P<value>.*?){_pattern(tail, id, line=True)}",
        regex.DOTALL,
    )
    opening, closing = regex.compile(_marks(before)[0]), _marks(_item_close(after, again, before))[0]

    def body(text: str, at: int, groups: Mapping[str, str | None]) -> tuple[list[Call], int]:
        found = {}
        while pair := argument.match(text, at):
            found[pair["key"].strip()], at = pair["value"], pair.end()
            if opening.search(pair["value"]):
                raise ValueError("an argument that is not closed")
        if not regex.match(rf"\s*{closing}", text, pos=at):
            raise ValueError("not an argument")
        return [Call(str(groups["name"]), found)], at

    return _framed(before, after, again, id, body, "", rf"(?=\s*(?:{_marks(head)[0]}|{closing}))", typed=False)


# What surrounds calls.


def _framed(
    before: str,
    after: str,
    between: str | None,
    id: str,  # noqa: A002
    body: Body,
    head: str,
    ahead: str,
    *,
    typed: bool = True,
) -> CallFormat | None:
    """A format from what precedes and follows a call, and what separates two calls.

    Args:
        head: pattern of the beginning of a call that nothing precedes.
        ahead: pattern of what a call begins with.
    """
    item_open, item_close = before, after
    if between is not None:
        between = between.replace(_NAMES[1], _NAMES[0])
        item_open = _whole_marks(_common_suffix(before, between), left=True)
        item_close = _item_close(after, between, before)
    outer_open, outer_close = before[: len(before) - len(item_open)], after[len(item_close) :]
    before_name = (outer_open.strip() or item_open).partition(_NAMES[0])[0].partition(id)[0]
    mark = next(iter(regex.findall(_MARK, before_name)), "")
    if not mark and not head:
        return None
    opening, item = _pattern(outer_open, id), _pattern(item_open, id)
    opens = (rf"(?:{opening})?" if item_open.strip() else opening) + item if mark else rf"\A\s*(?={head})"
    closes = "".join(rf"(?:\s*{mark})?" for mark in _marks(item_close + outer_close))
    return CallFormat(
        begins=regex.compile(regex.escape(mark) if mark else rf"\A\s*{head}"),
        opens=regex.compile(opens + ahead),
        continues=regex.compile(
            rf"\s*[;,]?\s*{item}{ahead}" if item_open.strip() or not mark else r"\s*[;,]?\s*(?=[\[{])"
        ),
        closes=regex.compile(closes),
        body=body,
        bare=not mark,
        typed=typed,
        texts=(outer_open, item_open, item_close, outer_close),
    )


def _item_close(after: str, between: str | None, before: str) -> str:
    """What closes one call, without what closes all of them."""
    if between is None:
        return after
    between = between.replace(_NAMES[1], _NAMES[0])
    opening = _whole_marks(_common_suffix(before, between), left=True)
    return _whole_marks(_common_prefix(after, between[: len(between) - len(opening)]))


def _whole_marks(text: str, *, left: bool = False) -> str:
    """A common part of two texts, without the part of a tag that it ends with (or begins with)."""
    return regex.sub(r"\A[^<>\[\]]*[>\]]" if left else r"[<\[][^<>\[\]]*\Z", "", text)  # type: ignore[no-any-return]


def _marks(text: str) -> list[str]:
    """Patterns of the tags and words of a text."""
    return [regex.escape(mark) for mark in regex.findall(_MARK, text)]


def _pattern(text: str, id: str, *, line: bool = False) -> str:  # noqa: A002
    """The pattern of a part of the form: any white space where it has some, or with ``line`` at most a line break."""
    space = r"\n?" if line else r"\s*"
    text = text.strip() if not line else text
    ids = r"(?P<id>[\w.:-]+)" if _NAMES[0] not in id else rf"(?P<id>functions\.{_NAME}:\d+)"
    found = "".join(
        space if part.isspace() else ids if part == id else _NAME if part == _NAMES[0] else regex.escape(part)
        for part in regex.split(rf"(\s+|{regex.escape(id)}|{_NAMES[0]})", text)
        if part
    )
    if ids in found and _NAME in found.replace(ids, ""):  # a model may leave the id out
        name = found.index(_NAME) + len(_NAME)
        at = found.index(ids)
        if name < at:
            found = f"{found[:name]}(?:{found[name:at]}{ids})?{found[at + len(ids) :]}"
    return found if line else rf"\s*{found}\s*" if found else ""
