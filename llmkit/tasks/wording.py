"""The caller's own wording of prompts, and the language of the built-in one.

Knows which columns a template may use, and by which language a row is prompted. Does not know the wordings themselves
(each task has its own).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.tasks.types import PromptOptions, Row, Traits
from llmkit.text.templates import render_template, template_columns

if TYPE_CHECKING:
    from llmkit.tasks.base import Task

__all__ = [
    "LANGUAGE",
    "PREFIX",
    "check_prompt",
    "columns_of_template",
    "for_model",
    "has_wording",
    "in_language",
    "input_text",
]

LANGUAGE = "_prompt_language"
"""Internal column with the language of a row's prompt."""
PREFIX = "_prefix"
"""Internal column with the prefix of a row's source, in place of that of the prompt options."""


def in_language(task: Task, row: Row, prompt_options: PromptOptions) -> Row:
    """The row with the language of its prompt, which all parts of its text have in common.

    Without a set language, a text that is mostly Chinese has a Chinese prompt, and any other an English one.
    """
    if len(task.wordings) < 2 or LANGUAGE in row:
        return row
    language: str = prompt_options.prompt_language
    if language == "auto":
        from llmkit.text.sentences import script_language

        found = script_language(str(row.get(task.input_column, "")))
        language = found if found in task.wordings else "en"
    return {**row, LANGUAGE: language}


def has_wording(task: Task, traits: Traits, template: str | None) -> bool:
    """Whether prompts have the task's own wording, in one of its languages."""
    return bool(task.wordings) and traits.is_instructed and not traits.extracts_spans and template is None


def for_model(prompt_options: PromptOptions, traits: Traits, task: Task) -> PromptOptions:
    """The options with English prompts if the model is declared for some languages, and Chinese is not among them."""
    declared = traits.declared_languages if has_wording(task, traits, prompt_options.template) else ()
    if prompt_options.prompt_language == "auto" and declared and "zh" not in declared:
        return replace(prompt_options, prompt_language="en")
    return prompt_options


def input_text(task: Task, row: Row, traits: Traits, prompt_options: PromptOptions) -> str:
    """The user's message for one row, or the input text for a model without a chat template."""
    prefix = row.get(PREFIX, prompt_options.prefix)
    if prompt_options.template is not None:
        return (prefix or "") + render_template(prompt_options.template, {**row, **task.template_variables(row)})
    if traits.chat and not prompt_options.raw:
        return (prefix or "") + task.instruct(row)
    text = task.plain_prompt(row, traits)
    return text if prefix is None else prefix + text.removeprefix(task.own_prefix(row, traits))


def columns_of_template(task: Task, template: str | None) -> dict[str, bool]:
    """The columns that a template uses in addition to the task's own, and whether it does not test for them."""
    if template is None:
        return {}
    own = {*task.columns, *task.optional_columns, *task.template_variables({})}
    found = template_columns(template)
    return {name: name not in found.optional for name in sorted(found.names - own)}


def check_prompt(task: Task, traits: Traits, prompt_options: PromptOptions) -> None:
    """Raise `UsageError` for a template that drops input or contains the answer, or for options without effect."""
    _check_wording(task, traits, prompt_options)
    if prompt_options.chat_template_kwargs and (prompt_options.raw or not traits.chat):
        raise UsageError(
            "`chat_template_kwargs` have no effect: the prompt is not rendered by a chat template",
            "leave them out",
            code="no_effect",
        )
    if prompt_options.tools or prompt_options.tool_choice:
        _check_tools(task, traits, prompt_options)
    if prompt_options.think is None or (traits.switches_thinking and not prompt_options.raw):
        return
    without = "the model's chat template cannot turn reasoning on or off"
    if prompt_options.raw or not traits.chat:
        without = "the prompt is not rendered by a chat template"
    raise UsageError(f"`think={prompt_options.think}` has no effect: {without}", "leave it out", code="no_effect")


def _check_tools(task: Task, traits: Traits, prompt_options: PromptOptions) -> None:
    if not task.calls_tools:
        raise UsageError(f"tools have no effect on {task.name}", "leave them out", code="no_effect")
    if prompt_options.raw or not traits.takes_tools:
        without = "the model's chat template renders none"
        if prompt_options.raw or not traits.chat:
            without = "the prompt is not rendered by a chat template"
        raise UsageError(
            f"tools cannot be offered: {without}",
            "leave them out, or use a model for tools",
            code="not_supported",
        )


def _check_wording(task: Task, traits: Traits, prompt_options: PromptOptions) -> None:
    """Raise `UsageError` for a template that drops input or contains the answer, or a language without effect."""
    if prompt_options.template is not None:
        _check_template(task, prompt_options.template)
    if prompt_options.prompt_language != "auto" and not has_wording(task, traits, prompt_options.template):
        why = "this model takes the text alone" if task.wordings else f"{task.name} has no wording of its own"
        why = why if prompt_options.template is None else "`template` takes the place of the task's own wording"
        raise UsageError(f"`prompt_language` has no effect: {why}", "leave it out", code="no_effect")


def _check_template(task: Task, template: str) -> None:
    names = template_columns(template).names
    if unused := [name for name in task.columns if name not in names]:
        raise UsageError(
            f"`template` does not use {' and '.join(unused)}, so that input would be dropped",
            "write " + " and ".join("{{ " + name + " }}" for name in unused) + " where it belongs",
            code="invalid_value",
        )
    others: dict[str, Any] = dict.fromkeys((*task.aliases, task.target_column, *task.learned_columns, "references"))
    own = (*task.columns, *task.optional_columns)
    if taken := [name for name in others if name in names and name not in own]:
        raise UsageError(
            f"`template` uses {' and '.join(taken)}, which belongs to what is learned",
            "leave it out of the template; the answer follows it",
            code="invalid_value",
        )
