"""The attention weights of a model for one text, from its own eager attention.

Every other implementation computes no weights, and Transformers returns an empty tuple then, without a word.

Knows the heads' inputs and the outputs of Transformers' models. Does not know how weights are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmkit.errors import ContextOverflowError, UsageError
from llmkit.explanation.tokens import readable_tokens, shown_token
from llmkit.heads import head_of
from llmkit.heads.base import BaseHead, refuse_unknown_ids
from llmkit.heads.windows import Document
from llmkit.models.quiet import quiet_transformers
from llmkit.pages import framed, render
from llmkit.pages.fonts import chosen_fonts
from llmkit.tasks import Example

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from llmkit.models.load import Loaded

__all__ = ["KINDS", "AttentionKind", "AttentionWeights", "attention_weights", "eager_attention"]

AttentionKind = Literal["cross", "question", "self", "encoder", "decoder"]
"""Which tokens attend to which: the output's to the input's, a question's to its context's, or one text's to itself."""

KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)
"""All kinds; the first of a model's kinds is shown by default."""

_FIELDS: Mapping[AttentionKind, str] = {
    "self": "attentions",
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}

_ABOUT: Mapping[AttentionKind, str] = {
    "self": "The tokens of one text to each other.",
    "encoder": "The input's tokens to each other.",
    "decoder": "The output's tokens to those before them.",
    "cross": "The output's tokens to the input's.",
    "question": "The question's tokens to the context's.",
}

_MAX_WEIGHTS = 8_000_000
"""A page of 21 MB."""

_LEAST = 0.0005
"""Less is 0.0%."""

MAX_TOKENS = 1024
"""No picture shows more, and the weights of 30 layers with 32 heads take 4 GB then."""


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Weights of one kind of attention: softmax(QKᵀ/√d) of "Attention Is All You Need", as far as the model scales so.

    Each row of a head sums to 1, but for models with attention sinks, and for ``question``, which has a part of the
    columns.
    """

    kind: AttentionKind
    model: str
    queries: tuple[str, ...]
    """The tokens that attend, as readable text."""
    keys: tuple[str, ...]
    """The tokens that are attended to."""
    layers: tuple[int, ...]
    """The numbers of the layers, from 0; layers without attention are absent."""
    weights: NDArray[np.float32]
    """``[layers, heads, queries, keys]``."""

    def head(self, layer: int | None = None, head: int | None = None) -> NDArray[np.float32]:
        """The weights ``[queries, keys]`` of a layer and a head; the mean over all where None. -1 is the last one.

        Raises:
            UsageError: the model has no such layer or head.
        """
        chosen = self.weights if layer is None else self.weights[self._place(layer)][None]
        if head is not None:
            count = self.weights.shape[1]
            if not -count <= head < count:
                raise UsageError(
                    f"the model has no attention head {head}", f"name one of 0 to {count - 1}", code="invalid_value"
                )
            chosen = chosen[:, head % count][:, None]
        mean: NDArray[np.float32] = chosen.mean(axis=(0, 1))
        return mean

    def _place(self, layer: int) -> int:
        number = self.layers[-1] + 1 + layer if layer < 0 else layer
        if number not in self.layers:
            last, which = self.layers[-1], ", ".join(map(str, self.layers))
            whole = len(self.layers) == last + 1
            raise UsageError(
                f"the model has no layer {layer} with attention weights",
                f"name one of 0 to {last}" if whole else f"name one of {which}",
                code="invalid_value",
            )
        return self.layers.index(number)

    def to_dict(self, layer: int | None = None, head: int | None = None) -> dict[str, Any]:
        """A JSON object with the weights of a layer and a head, or their mean."""
        return {
            "schema_version": 1,
            "model": self.model,
            "attention": self.kind,
            "layer": layer,
            "attention_head": head,
            "layers": list(self.layers),
            "attention_heads": int(self.weights.shape[1]),
            "queries": list(self.queries),
            "keys": list(self.keys),
            "weights": [[round(float(weight), 6) for weight in row] for row in self.head(layer, head)],
        }

    def largest(self, layer: int | None = None, head: int | None = None, top: int = 4) -> Iterator[tuple[str, ...]]:
        """The cells of a table: each query, and its keys with the largest weights."""
        for query, row in zip(self.queries, self.head(layer, head), strict=True):
            best = [key for key in row.argsort(kind="stable")[::-1][:top] if row[key] >= _LEAST]
            yield shown_token(query), "  ".join(f"{shown_token(self.keys[key])} {row[key]:.1%}" for key in best)

    def to_html(self, layer: int | None = None, head: int | None = None) -> str:
        """A page with a heat map, in which layer and head can be chosen; these are shown first.

        Raises:
            UsageError: the weights of all layers are too many for a page, and no layer is named.
        """
        import base64

        import numpy as np

        self.head(layer, head)  # refuses what does not exist
        shown, layers = self.weights, self.layers
        if shown.size > _MAX_WEIGHTS:
            if layer is None:
                raise UsageError(
                    f"a page with {shown.size:,} weights is too large", "name a `layer`", code="invalid_value"
                )
            place = self._place(layer)
            shown, layers = shown[place][None], (self.layers[place],)
        numbers = (shown * 65535).round().astype("<u2")
        return render(
            "attention.html",
            model=self.model,
            about=_ABOUT[self.kind],
            whole=self.kind != "question",
            layers=[*layers],
            heads=shown.shape[1],
            chosen_layer=None if layer is None else self.layers[self._place(layer)],
            chosen_head=None if head is None else int(np.arange(shown.shape[1])[head]),
            data={
                "weights": base64.b64encode(numbers.tobytes()).decode(),
                "shape": list(shown.shape),
                "queries": [shown_token(each) for each in self.queries],
                "keys": [shown_token(each) for each in self.keys],
            },
        )

    def _repr_html_(self) -> str:
        return framed(self.to_html())

    def draw(self, path: Path, layer: int | None = None, head: int | None = None) -> None:
        """Draw the heat map of a layer and a head, or the mean, as PNG or SVG, by the suffix."""
        from matplotlib.figure import Figure

        values = self.head(layer, head)
        cell = max(0.16, min(0.3, 12 / max(values.shape)))
        with chosen_fonts("".join((*self.queries, *self.keys))):
            figure = Figure(figsize=(2.5 + cell * len(self.keys), 1.8 + cell * len(self.queries)), layout="constrained")
            axes = figure.subplots()
            picture = axes.imshow(values, cmap="Oranges", vmin=0, aspect="equal")
            axes.set_xticks(range(len(self.keys)), [*map(shown_token, self.keys)], rotation=90)
            axes.set_yticks(range(len(self.queries)), [*map(shown_token, self.queries)])
            axes.tick_params(labelsize=9, length=0)
            axes.set_title(f"{self._chosen(layer, head)}, {self.kind} attention", fontsize=10)
            figure.colorbar(picture, shrink=0.6, label="attention weight")
            figure.savefig(path, dpi=150)

    def _chosen(self, layer: int | None, head: int | None) -> str:
        of = "mean of all layers" if layer is None else f"layer {self.layers[self._place(layer)]}"
        which = "mean of all heads" if head is None else f"head {head % self.weights.shape[1]}"
        return f"{of}, {which}"


def attention_weights(loaded: Loaded, example: Example) -> dict[AttentionKind, AttentionWeights]:
    """The attention weights of a model while it reads an example.

    An encoder-decoder reads the prompt, and the target with its decoder; a causal model reads both in one sequence; an
    extractive model reads a question with its context, which must fit into one window.

    Returns:
        By kind, in the order of `KINDS`. A model has ``self``, or ``encoder``, ``decoder`` and ``cross``; an
        extractive one also ``question``: the part of ``self`` from the question to the context.

    Raises:
        UsageError: the model computes no weights, or in a form of its own.
        ContextOverflowError: the text is too long.
    """
    head = head_of(loaded.head)
    inputs = _inputs(loaded, head, example)
    output = _run(loaded, inputs)
    tokens = readable_tokens(loaded.tokenizer, inputs["input_ids"][0].tolist())
    begun = inputs["decoder_input_ids"][0].tolist() if "decoder_input_ids" in inputs else []
    decoder = readable_tokens(loaded.tokenizer, begun)
    sides = {"self": (tokens, tokens), "encoder": (tokens, tokens), "decoder": (decoder, decoder)}
    sides["cross"] = (decoder, tokens)
    found = {}
    for kind, name in _FIELDS.items():
        layers = getattr(output, name, None) or ()
        if any(each is not None for each in layers):
            found[kind] = _stacked(loaded, kind, layers, *sides[kind])
    if not found:
        raise _none(loaded)
    if not head.writes:
        found["question"] = _question(loaded, example, found["self"])
    return {kind: found[kind] for kind in KINDS if kind in found}


def _inputs(loaded: Loaded, head: BaseHead, example: Example) -> dict[str, torch.Tensor]:
    """The model's inputs for an example, without the last token, which is only predicted."""
    windows = head.features(loaded, [example], loss_on="target")
    if len(windows) != 1:
        raise ContextOverflowError(
            f"the text has {len(windows)} windows, and the attention of one is shown", "shorten it"
        )
    lines = asdict(windows[0])
    if head.one_sequence:
        lines |= {name: lines[name][:-1] for name in ("input_ids", "labels")}
    for name in ("input_ids", "decoder_input_ids"):
        refuse_unknown_ids(loaded, lines[name])
        _check_length(loaded, len(lines[name]))
    batch = head.batch([lines], pad_id=head.pad_id(loaded))
    return batch.to(loaded.device).inputs


def _check_length(loaded: Loaded, count: int) -> None:
    context = loaded.context.tokens if loaded.context.hard else None
    limit = min(MAX_TOKENS, context or MAX_TOKENS)
    if count > limit:
        raise ContextOverflowError(
            f"the text has {count} tokens, and the attention of at most {limit} is shown", "shorten it"
        )


def _run(loaded: Loaded, inputs: Mapping[str, torch.Tensor]) -> Any:
    import torch

    with loaded.lock, quiet_transformers(), eager_attention(loaded), torch.inference_mode():
        return loaded.model(**inputs, output_attentions=True)


@contextmanager
def eager_attention(loaded: Loaded) -> Iterator[None]:
    """Let a model compute its attention eagerly, and as before afterwards.

    Raises:
        UsageError: it cannot.
    """
    model: Any = loaded.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = _implementations(base.config)
    try:
        try:
            base.set_attn_implementation("eager")
        except (ValueError, ImportError) as error:
            raise _none(loaded) from error
        yield
    finally:
        base.set_attn_implementation(before)


def _implementations(config: Any) -> dict[str, Any]:
    """The implementations of a config and of those inside it, as ``set_attn_implementation`` takes them."""
    inner = {name: getattr(config, name, None) for name in config.sub_configs}
    own = {"": config._attn_implementation}  # noqa: SLF001 - Transformers has no public name for it
    return own | {name: _implementations(each) for name, each in inner.items() if each is not None}


def _none(loaded: Loaded) -> UsageError:
    return UsageError(
        f"{type(loaded.model).__name__} returns no attention weights",
        "choose a model with attention that Transformers can compute eagerly",
        code="not_supported",
    )


def _stacked(
    loaded: Loaded, kind: AttentionKind, layers: Sequence[Any], queries: tuple[str, ...], keys: tuple[str, ...]
) -> AttentionWeights:
    """The weights of all layers, ``[1, heads, queries, keys]`` each, as one array."""
    import torch

    present = [number for number, each in enumerate(layers) if each is not None]
    shapes = {tuple(layers[number].shape) for number in present}
    rows, columns = (shape := next(iter(shapes)))[-2:]
    virtual = loaded.source.virtual_tokens
    fits = len(shape) == 4 and rows - len(queries) in (0, virtual) and columns - len(keys) in (0, virtual)
    if len(shapes) > 1 or not fits:
        raise UsageError(
            f"{type(loaded.model).__name__} has attention weights of another form than one for each pair of tokens",
            "choose a model with full attention",
            code="not_supported",
        )
    return AttentionWeights(
        kind,
        loaded.source.name,
        _virtual(rows - len(queries)) + queries,
        _virtual(columns - len(keys)) + keys,
        _numbers(loaded.model.config, len(layers), present),
        torch.stack([layers[number][0].float().cpu() for number in present]).numpy(),
    )


def _virtual(count: int) -> tuple[str, ...]:
    """Names of the virtual tokens that a tuned prompt puts in front."""
    return tuple(f"<virtual {number}>" for number in range(count))


def _numbers(config: Any, count: int, present: Sequence[int]) -> tuple[int, ...]:
    """The numbers of layers with weights; a model with layers of another kind may return fewer than it has."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    attending = [number for number, kind in enumerate(kinds) if "attention" in kind and "linear" not in kind]
    return tuple(attending) if len(kinds) != count == len(attending) else tuple(present)


def _question(loaded: Loaded, example: Example, whole: AttentionWeights) -> AttentionWeights:
    """The part of a question's and its context's attention that goes from the one to the other."""
    assert example.prompt is not None
    document = head_of(loaded.head).encode(loaded, example.prompt)
    assert isinstance(document, Document)
    (window,) = document.windows
    virtual = len(whole.keys) - len(window.input_ids)
    text = slice(virtual + window.text_at, virtual + window.text_at + window.end - window.begin)
    special = set(loaded.tokenizer.all_special_ids)
    rows = [
        virtual + place
        for place, token in enumerate(window.input_ids)
        if token not in special and not text.start <= virtual + place < text.stop
    ]
    queries = tuple(whole.queries[row] for row in rows)
    return AttentionWeights(
        "question", whole.model, queries, whole.keys[text], whole.layers, whole.weights[:, :, rows, text]
    )
