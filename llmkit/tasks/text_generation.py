"""Text generation: continue a text, or answer a prompt.

Knows that a prompt is its own wording. Does not know chat templates: a model that has one gets the prompt
as the user's message, others continue it.
"""

from __future__ import annotations

from llmkit.tasks.base import Example, Row, Task, Traits, Wording

__all__ = ["TextGeneration"]


class TextGeneration(Task):
    name = "text-generation"
    verb = "generate"
    input_column = "prompt"
    columns = ("prompt",)
    target_column = "completion"
    max_new_tokens = 256
    truncation_side = "left"  # the end is what is continued
    thinks = True
    strips = False

    def examples(self, row: Row, traits: Traits, wording: Wording) -> tuple[Example, ...]:
        """A row with a ``text`` is learned whole, as in pretraining; others have a prompt and its completion."""
        if "text" in row:
            return (Example(None, str(row["text"])),) if str(row["text"]).strip() else ()
        completion = self.reference(row)
        # As it is, without a space in front: a completion goes on in the middle of a word if it is to.
        return (Example(self.render(row, traits, wording), completion),) if completion.strip() else ()

    def check(self, traits: Traits, wording: Wording) -> None:
        """Nothing is refused: a system message is text in front where there is no template."""
