"""The text-to-text pipelines of Transformers 4, which version 5 removed, on the pipeline base that it kept.

Reproduces how 4.57.6 processed a text, its settings and their order of precedence; batches, datasets, generators and
devices are left to the base class. Models are located and loaded elsewhere.
"""

from __future__ import annotations

import copy
import enum
from typing import Any, ClassVar

from transformers import GenerationConfig
from transformers.pipelines import base

from llmkit.errors import InputError, UsageError
from llmkit.log import warn

__all__ = ["ReturnType", "SummarizationPipeline", "Text2TextGenerationPipeline", "TranslationPipeline"]

_Pipeline: Any = base.Pipeline  # its own hints forbid the arguments that all of its subclasses add

_MAX_NEW_TOKENS, _NUM_BEAMS = 256, 4
_MAX_LENGTH = 20
"""Default max_length of version 4."""


class ReturnType(enum.Enum):
    """Values of ``return_type``."""

    TENSORS = 0
    TEXT = 1


class Text2TextGenerationPipeline(_Pipeline):  # type: ignore[misc]
    """Generates text from text with an encoder-decoder.

    One text gives ``[{"generated_text": str}]``, a list gives a list of such dicts (of lists of dicts if
    ``num_return_sequences`` is more than 1), a dataset or generator gives an iterator. With ``return_tensors=True`` the
    key is ``generated_token_ids`` and the value a tensor ``[length]``.

    Settings of generation are those of the call, else of the constructor, of ``task_specific_params`` in the config,
    ``max_new_tokens=256`` and ``num_beams=4`` (a ``max_length`` of the model's own takes the place of the first),
    else of the model.
    """

    return_name: ClassVar[str] = "generated"

    _pipeline_calls_generate = True
    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False
    _default_generation_config = GenerationConfig(max_new_tokens=_MAX_NEW_TOKENS, num_beams=_NUM_BEAMS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "generation_config" in self._generate_kwargs:
            raise UsageError(
                "generation_config is an argument of the call, not of pipeline()",
                "pass it with the text",
                code="not_supported",
            )
        self.generation_config = self._usual_generation()

    def _usual_generation(self) -> GenerationConfig:
        """Settings of every call, in the order of precedence of 4.57.6; None is left to the model."""
        own = self.model.generation_config
        config = copy.deepcopy(self._default_generation_config)
        config.update(**self._generate_kwargs)
        length = own.max_length if config.max_length is None else config.max_length
        if config.max_new_tokens == _MAX_NEW_TOKENS and length not in (None, _MAX_LENGTH):
            config.max_new_tokens = None
        params = (getattr(self.model.config, "task_specific_params", None) or {}).get(self.task) or {}
        self.prefix = params.get("prefix", self.prefix)  # type: ignore[has-type]  # of the base, which has no types here
        config.update(**{name: value for name, value in params.items() if name != "prefix"})
        if config.pad_token_id is None and own.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id
        return config

    def _sanitize_parameters(
        self,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        return_type: ReturnType | int | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        truncation: Any = None,
        stop_sequence: str | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess: dict[str, Any] = {} if truncation is None else {"truncation": truncation}
        postprocess: dict[str, Any] = {}
        if return_tensors is not None and return_type is None:
            return_type = ReturnType.TENSORS if return_tensors else ReturnType.TEXT
        if return_text is not None and return_text == bool(return_tensors):
            warn("no_effect", "return_text has no effect, as in Transformers 4; return_tensors decides")
        if return_type is not None:
            postprocess["return_type"] = ReturnType(return_type)
        if clean_up_tokenization_spaces is not None:
            postprocess["clean_up_tokenization_spaces"] = clean_up_tokenization_spaces
        if stop_sequence is not None:
            ids = self.tokenizer.encode(stop_sequence, add_special_tokens=False)
            if len(ids) > 1:
                warn(
                    "setting_adjusted",
                    "stop_sequence=%r has %d tokens, and only the first stops",
                    stop_sequence,
                    len(ids),
                )
            generate_kwargs["eos_token_id"] = ids[0]
        if self.assistant_model is not None:
            generate_kwargs["assistant_model"] = self.assistant_model
        if self.assistant_tokenizer is not None:
            generate_kwargs |= {"tokenizer": self.tokenizer, "assistant_tokenizer": self.assistant_tokenizer}
        return preprocess, generate_kwargs, postprocess

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate from a text, a list of texts, a dataset or a generator of texts; see the class for the results.

        Args:
            inputs: the text or texts.
            *args: unused; required by the base class.
            **kwargs: ``return_tensors``, ``return_type``, ``clean_up_tokenization_spaces`` (False), ``truncation``
                (none), ``stop_sequence`` (its first token), ``batch_size``, ``num_workers``, ``generation_config``, and
                the arguments of ``generate``.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def preprocess(self, inputs: Any, truncation: Any = False) -> Any:
        encoded = self.tokenizer((self.prefix or "") + _text(inputs), truncation=truncation, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        return encoded

    def check_inputs(self, input_length: int, min_length: int, max_length: int) -> None:
        """Warn about implausible lengths, all in tokens."""

    def _forward(self, model_inputs: Any, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Any:
        inputs = dict(model_inputs)
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        forced = inputs.pop("forced_bos_token_id", None)
        if forced is not None:
            if "forced_bos_token_id" in kwargs:
                raise UsageError(
                    "tgt_lang and forced_bos_token_id are mutually exclusive",
                    "leave one of them out",
                    code="not_supported",
                )
            # A batch collects the one number of each of its rows.
            config.forced_bos_token_id = forced[0] if isinstance(forced, list) else forced
        lifted = kwargs.get("max_new_tokens", 0) is None and self.model.generation_config.max_new_tokens is not None
        kwargs = config.update(**kwargs)
        if lifted:
            # In version 5 None means the model's own; max_length counts the token that a decoder starts with.
            config.max_new_tokens = max(1, (self._effective(config, "max_length") or _MAX_LENGTH + 1) - 1)
        if config.return_dict_in_generate:
            raise UsageError(
                "pipelines do not support return_dict_in_generate", "call model.generate for scores", code="no_effect"
            )
        rows, length = inputs["input_ids"].shape
        self.check_inputs(length, self._effective(config, "min_length") or 0, self._limit(config))
        if self._effective(config, "stop_strings"):
            kwargs.setdefault("tokenizer", self.tokenizer)
        ids = self.model.generate(**inputs, generation_config=config, **kwargs)
        return {"output_ids": ids.reshape(rows, len(ids) // rows, *ids.shape[1:])}

    def _effective(self, config: GenerationConfig, name: str) -> Any:
        value = getattr(config, name)
        return getattr(self.model.generation_config, name) if value is None else value

    def _limit(self, config: GenerationConfig) -> int:
        """Maximum length of the output in tokens."""
        return int(self._effective(config, "max_new_tokens") or self._effective(config, "max_length") or _MAX_LENGTH)

    def postprocess(
        self,
        model_outputs: Any,
        return_type: ReturnType = ReturnType.TEXT,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[dict[str, Any]]:
        if return_type is ReturnType.TENSORS:
            return [{f"{self.return_name}_token_ids": ids} for ids in model_outputs["output_ids"][0]]
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts = [self.tokenizer.decode(self._known(ids), **options) for ids in model_outputs["output_ids"][0]]
        if clean_up_tokenization_spaces:  # in version 5 the option has no effect on byte-level BPE
            texts = list(map(self.tokenizer.clean_up_tokenization, texts))
        return [{f"{self.return_name}_text": text} for text in texts]

    def _known(self, ids: Any) -> Any:
        """The ids without those that a slow tokenizer does not know (M2M100's last ones), as in version 4."""
        if self.tokenizer.is_fast:
            return ids
        unknown = self.tokenizer.unk_token
        return [each for each in ids.tolist() if self.tokenizer.convert_ids_to_tokens(each) != unknown]


class SummarizationPipeline(Text2TextGenerationPipeline):
    """`Text2TextGenerationPipeline` whose keys are ``summary_text`` and ``summary_token_ids``."""

    return_name = "summary"

    def check_inputs(self, input_length: int, min_length: int, max_length: int) -> None:
        if max_length < min_length:
            warn(
                "length_unusual",
                "min_length=%d is above the maximum length of the output, %d tokens",
                min_length,
                max_length,
            )
        if input_length < max_length:
            warn(
                "length_unusual",
                "the summary may have %d tokens, and the text has %d; set max_length=%d to shorten it",
                max_length,
                input_length,
                input_length // 2,
            )


class TranslationPipeline(Text2TextGenerationPipeline):
    """`Text2TextGenerationPipeline` whose keys are ``translation_text`` and ``translation_token_ids``.

    ``src_lang`` and ``tgt_lang`` are the model's own codes; a task ``translation_xx_to_yy`` gives them too.
    """

    return_name = "translation"

    def _sanitize_parameters(  # type: ignore[override]  # everything else is passed on
        self, src_lang: str | None = None, tgt_lang: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if src_lang is None and tgt_lang is None and len(parts := self.task.split("_")) == 4:
            src_lang, tgt_lang = parts[1], parts[3]
        languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        preprocess |= {name: code for name, code in languages.items() if code is not None}
        return preprocess, forward, postprocess

    def preprocess(
        self, inputs: Any, truncation: Any = False, src_lang: str | None = None, tgt_lang: str | None = None
    ) -> Any:
        if not hasattr(self.tokenizer, "_build_translation_inputs"):
            return super().preprocess(inputs, truncation)
        if src_lang is None or tgt_lang is None:
            raise UsageError(
                f"{type(self.model).__name__} is multilingual and requires src_lang and tgt_lang",
                "pass them, as the tokenizer spells them",
                code="language_missing",
            )
        return self.tokenizer._build_translation_inputs(  # noqa: SLF001 - made for this pipeline
            _text(inputs), return_tensors="pt", truncation=truncation, src_lang=src_lang, tgt_lang=tgt_lang
        )

    def check_inputs(self, input_length: int, min_length: int, max_length: int) -> None:  # noqa: ARG002
        if input_length > 0.9 * max_length:
            warn(
                "length_unusual",
                "the text has %d tokens, and its translation may have only %d; set max_new_tokens=%d",
                input_length,
                max_length,
                2 * input_length,
            )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise InputError(
        f"{str(value)[:60]!r} is not a text", "give a string, a list of strings, or a dataset or generator of them"
    )
