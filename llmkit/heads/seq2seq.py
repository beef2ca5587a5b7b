"""The seq2seq head: an encoder processes the prompt, a decoder generates from its start token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError, InputError, UsageError
from llmkit.heads.base import IGNORED, Encoded, Features, LossOn, encode_text, pad
from llmkit.heads.batch import Batch, Line, fill, padded
from llmkit.heads.chat_template import encode_chat
from llmkit.heads.end_tokens import end_id, turn_ends
from llmkit.heads.objective import Objective
from llmkit.heads.token_loss import TokenLoss
from llmkit.heads.writing import WritingHead
from llmkit.models.language_map import apply_source
from llmkit.tasks import Chat, Example, Head, Prompt, Text
from llmkit.text.languages import Route

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["Seq2SeqHead"]


class Seq2SeqHead(WritingHead):
    name = Head.SEQ2SEQ

    def encode(self, loaded: Loaded, prompt: Prompt) -> Encoded:
        route: Route | None = None
        match prompt:
            case Chat(prefill=prefill):
                ids = encode_chat(loaded.tokenizer, replace(prompt, prefill=""))
            case Text(ids=given, prefill=prefill) if given:
                ids = list(given)
            case Text(text=text, prefill=prefill):
                route = prompt.route
                code = route.source_code if route else None
                # The language is state of the tokenizer, which other threads share.
                with loaded.lock, apply_source(loaded.tokenizer, code) if code else nullcontext():
                    ids = encode_text(loaded.tokenizer, text)
            case _:
                raise UsageError(
                    "a seq2seq model takes text or messages", "render the row for its head", code="not_supported"
                )
        begun = encode_text(loaded.tokenizer, prefill, special=False) if prefill else []
        return Encoded(
            tuple(ids),
            decoder_ids=tuple(self._start(loaded, route, begun)),
            continues=tuple(begun),
            forced_bos_token_id=route.forced_bos_token_id if route else None,
            ends=turn_ends(loaded) if isinstance(prompt, Chat) else frozenset(),
        )

    def _start(self, loaded: Loaded, route: Route | None, begun: list[int]) -> list[int]:
        """The ids the decoder starts with. Generation forces a language token only right after the start token."""
        config = loaded.model.generation_config
        route = route or Route(None, None)
        start = next(
            (
                token
                for token in (route.decoder_start_token_id, config.decoder_start_token_id, config.bos_token_id)
                if token is not None
            ),
            None,
        )
        if start is None:
            raise CheckpointError(
                f"{loaded.source.name} names no decoder_start_token_id", "add it to its generation_config.json"
            )
        start = start if isinstance(start, list) else [start]
        forced = config.forced_bos_token_id if route.forced_bos_token_id is None else route.forced_bos_token_id
        return [*start, *([forced] if begun and forced is not None else []), *begun]

    def features(self, loaded: Loaded, examples: Sequence[Example], *, loss_on: LossOn) -> list[Features]:
        """See `BaseHead`. The decoder input is its start at inference, then the answer shifted by one token."""
        if loss_on == "all":
            raise UsageError(
                "loss_on: all has no effect: an encoder's tokens have no loss", "leave it out", code="no_effect"
            )
        return [self._features(loaded, example) for example in examples]

    def _features(self, loaded: Loaded, example: Example) -> Features:
        if example.prompt is None or not isinstance(example.prompt, Chat | Text):
            raise UsageError(
                "a seq2seq model learns an answer to a text",
                "give rows with a prompt and a completion",
                code="not_supported",
            )
        if example.reply is not None:
            raise InputError(
                "an encoder-decoder model cannot learn tool calls or reasoning of a chat template",
                "remove the row",
                code="not_supported",
            )
        encoded = self.encode(loaded, example.prompt)
        begun = list(encoded.decoder_ids)
        answer = _answer(loaded, example)
        forced = encoded.forced_bos_token_id
        forced = loaded.model.generation_config.forced_bos_token_id if forced is None else forced
        if forced is not None and forced not in begun and answer[0] != forced:
            answer = [forced, *answer]
        ignored = [IGNORED] * (len(begun) - 1)
        return Features(encoded.input_ids, (*ignored, *answer), decoder_input_ids=(*begun, *answer[:-1]))

    def collate(self, loaded: Loaded, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        import torch

        ids, mask = pad([row.input_ids for row in batch], self.pad_id(loaded), loaded.device, left=False)
        started = torch.tensor([row.decoder_ids for row in batch], device=loaded.device)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": started}

    def output_start(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(inputs["decoder_input_ids"].shape[1])

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        limit = self.output_limit(loaded)
        return None if limit is None else limit - len(encoded.decoder_ids)

    def output_limit(self, loaded: Loaded) -> int | None:
        own: int | None = getattr(loaded.model.config, "max_decoder_position_embeddings", None)  # LED
        if own is not None:
            return own
        return loaded.context.tokens if loaded.context.hard else None

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        """See `BaseHead`. An encoder is bidirectional, so there is always a mask."""
        begun = fill([line["decoder_input_ids"] for line in lines], pad_id)
        inputs = padded(lines, pad_id) | {"decoder_input_ids": begun}
        return Batch(inputs, fill([line["labels"] for line in lines], IGNORED))

    def loss(self, model: Any, batch: Batch, objective: Objective) -> torch.Tensor:
        if objective.balances:  # router losses are returned only as part of the model's own loss, which needs logits
            objective = replace(objective, projection=None)
        output, states = self.states(model, batch, objective)
        loss = objective.label_loss(states, batch)
        if objective.balances and (count := self.predictions(batch)):
            loss = loss + output.loss * count - TokenLoss()(states, batch.labels)
        return loss

    def states(self, model: Any, batch: Batch, objective: Objective) -> tuple[Any, torch.Tensor]:
        routers = {"output_router_logits": True, "labels": batch.labels} if objective.balances else {}
        arguments = {**batch.inputs, **routers, "use_cache": False}
        if (projection := objective.projection_for(batch)) is not None:
            return projection.run(model, arguments)
        output = model(**arguments)
        return output, output.logits

    def target_loss(self, loaded: Loaded, features: Features, objective: Objective) -> tuple[float, int]:
        limit, length = loaded.context.tokens, len(features.input_ids)
        if limit is not None and loaded.context.hard and length > limit:
            raise InputError(
                f"it has {length} tokens, and the model's context is {limit}", "shorten it", code="context_overflow"
            )
        count = len(features.labels) - features.labels.count(IGNORED)
        return self.line_loss(loaded, asdict(features), objective), count

    def probe(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().probe(ids) | {"decoder_input_ids": ids}


def _answer(loaded: Loaded, example: Example) -> list[int]:
    """Ids of an answer as the decoder was trained on it: with the special tokens of its tokenizer, ending in EOS."""
    tokenizer: Any = loaded.tokenizer
    route = example.prompt.route if isinstance(example.prompt, Text) else None
    # The special tokens of a multilingual tokenizer name the source language.
    plain = route is not None and (route.source_code is not None or route.forced_bos_token_id is not None)
    if hasattr(tokenizer, "spm_target"):  # Marian: two languages, two vocabularies
        with loaded.lock:
            ids = list(tokenizer(text_target=example.target, add_special_tokens=False, verbose=False)["input_ids"])
    else:
        ids = encode_text(tokenizer, example.target, special=not plain)
    end = end_id(loaded)
    return ids if ids and ids[-1] == end else [*ids, end]
