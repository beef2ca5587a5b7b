"""Text generation: continue a text, or answer a prompt.

The prompt is used verbatim: as the user's message with a chat template, otherwise as the text to continue.
"""

from __future__ import annotations

from llmkit.errors import InputError
from llmkit.tasks.base import COMPLETION, EXAMPLES, PROMPT, Task
from llmkit.tasks.recommended import QWEN, QWEN_SMALL, SMOL, STARTER
from llmkit.tasks.types import Example, Prompt, PromptOptions, Row, Text, Traits
from llmkit.tasks.wording import PREFIX

__all__ = ["TextGeneration"]


class TextGeneration(Task):
    name = "text-generation"
    verb = "generate"
    help = """Answer a prompt, continue a text, or answer a file of prompts.

    Settings default to the model's own generation_config.json; without one, decoding is greedy,
    with at most 256 tokens.

    Examples:
        llmkit generate "Write a haiku about the sea." --temperature 0.8
        llmkit generate --raw "The meaning of life is" --max-new-tokens 40
        cat notes.txt | llmkit generate "Name the people in this text:"
        llmkit generate --input prompts.jsonl --output answers.jsonl
    """
    synonyms = ("complete", "completion", "continue", "prompt", "run", "write", "infer", "predict", "inference")
    command_prompt_options = (
        "system", "prefill", *EXAMPLES, "template", "prefix", "raw", "think", "chat_template_kwargs", "tools",
        "tool_choice",
    )  # fmt: skip
    takes_instruction = True
    input_column = "prompt"
    columns = ("prompt",)
    optional_columns = ("tools",)
    target_column = "completion"
    aliases = {
        "text": ("text", "content", "body", "paragraphs", "poem", "story", "code", "内容", "正文", "文本", "诗", "內容",
                 "本文", "テキスト"),
        "prompt": PROMPT,
        "completion": COMPLETION,
    }  # fmt: skip
    learned_columns = ("text", "completion")
    shapes = ("alpaca", "text or pair")
    max_new_tokens = 256
    truncation_side = "left"  # the end is continued
    learns_parts = True  # of plain text
    calls_tools = allow_reasoning = True
    strip_output = False
    recommended = (SMOL, STARTER, QWEN_SMALL, QWEN)
    suits_translators = True
    reports_perplexity = True

    def is_plain(self, row: Row) -> bool:
        return "text" in row

    def validate_learned(self, row: Row, *, all_of_it: bool) -> None:
        if not self.is_plain(row):
            self.validate(row)

    def examples(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> tuple[Example, ...]:
        """Rows with a ``text`` are learned in full, as in pretraining; others have a prompt and its completion."""
        if self.is_plain(row):
            if prompt_options.template is not None or row.get(PREFIX, prompt_options.prefix) is not None:
                raise InputError(
                    "the row is plain text, which is learned without a prompt",
                    "leave out template and prefix of the section prompt, and prefix of the source",
                    code="no_effect",
                )
            return (Example(None, str(row["text"])),) if str(row["text"]).strip() else ()
        completion = self.reference(row)
        # Without an added space, since a completion may continue in the middle of a word.
        return (Example(self.render(row, traits, prompt_options), completion),) if completion.strip() else ()

    def validate(self, row: Row) -> None:
        """See `Task`. The prompt may be a `Text` already, such as one of token ids."""
        if not isinstance(row.get("prompt"), Text):
            super().validate(row)

    def render(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> Prompt:
        return row["prompt"] if isinstance(row["prompt"], Text) else super().render(row, traits, prompt_options)

    def check_compatible(self, traits: Traits, prompt_options: PromptOptions) -> None:
        """Refuse nothing: without a chat template, a system message is put before the prompt."""
