"""Chat templates that render tools and calls as those of well-known models do, shortened to what tests need."""

from __future__ import annotations

_EACH = "{% for m in messages %}"
_TOOLS = "{% if tools %}TOOLS {% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
_BEGIN = "{% if add_generation_prompt %}"


def _chatml(calls: str, begin: str = "<|im_start|>assistant\n") -> str:
    """ChatML, with a pattern of one call ``t``."""
    return (
        f"{_TOOLS}{_EACH}<|im_start|>{{{{ m.role }}}}\n{{% if m.role == 'tool' %}}<tool_response>\n{{{{ m.content }}}}"
        "\n</tool_response>{% else %}{{ m.content or '' }}{% endif %}{% for call in m.tool_calls or [] %}"
        f"{{% set t = call.function %}}{calls}{{% endfor %}}<|im_end|>\n{{% endfor %}}{_BEGIN}{begin}{{% endif %}}"
    )


HERMES = _chatml(
    "{{ '\\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ t.name }}", "arguments": {{ t.arguments | tojson }}}\n</tool_call>'
)
"""Hermes 2 Pro, Qwen 2.5, Qwen 3, SmolLM3."""
QWEN_CODER = _chatml(
    "\n<tool_call>\n<function={{ t.name }}>\n{% for k, v in t.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
"""Qwen 3 Coder, Qwen 3.5."""
GLM = _chatml(
    "\n<tool_call>{{ t.name }}\n{% for k, v in t.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
)
KIMI = _chatml(
    "{{ '<|tool_calls_section_begin|>' if loop.first }}<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>"
    "{{ t.arguments | tojson }}<|tool_call_end|>{{ '<|tool_calls_section_end|>' if loop.last }}"
)
LFM = _chatml(
    "{{ '<|tool_call_start|>[' if loop.first }}{{ t.name }}({% for k, v in t.arguments.items() %}{{ k }}="
    "{{ v if v is boolean or v is none else v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
    "{{ ', ' if not loop.last else ']<|tool_call_end|>' }}"
)
COHERE = _chatml(
    '{{ \'<|START_ACTION|>[\\n\' if loop.first }}{"tool_call_id": "{{ loop.index0 }}", "tool_name": '
    '"{{ t.name }}", "parameters": {{ t.arguments | tojson }}}{{ ",\\n" if not loop.last else "\\n]<|END_ACTION|>" }}'
).replace(
    "{{ m.content or '' }}",
    "{% if m.role == 'user' %}{{ m.content }}{% elif not m.tool_calls %}<|START_RESPONSE|>{{ m.content }}"
    "<|END_RESPONSE|>{% endif %}",
)
LLAMA = (
    _TOOLS + _EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}"
    '{% endif %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    + _BEGIN + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)  # fmt: skip
"""Llama 3.1 to 3.3: nothing marks a call, and there is one at most."""
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}" + _EACH +
    "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS] "
    "{{ m.content }}[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}{{ (call.function | tojson)[:-1] }}, \"id\": \"{{ call.id }}\"}{{ ', ' if not loop.last }}{% endfor %}]"
    "</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)  # fmt: skip
"""Mistral 7B 0.3, Nemo."""
MISTRAL_SMALL = MISTRAL.replace(
    MISTRAL[MISTRAL.index("{% elif m.tool_calls %}") :],
    "{% else %}{{ m.content }}{% for call in m.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[CALL_ID]"
    "{{ call.id }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}</s>{% endif %}{% endfor %}",
)
"""Mistral Small 3.2 and later."""
DEEPSEEK = (
    _TOOLS + _EACH + "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'tool' %}"
    "<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>{% else %}<｜Assistant｜>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}<｜tool▁call▁begin｜>{{ call.type }}<｜tool▁sep｜>"
    "{{ call.function.name + '\n```json\n' + call.function.arguments + '\n```<｜tool▁call▁end｜>' }}"
    "{{ '<｜tool▁calls▁end｜>' if loop.last }}{% endfor %}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    + _BEGIN + "<｜Assistant｜>{% endif %}"
)  # fmt: skip
"""DeepSeek V3 and R1, whose arguments are a text."""
NO_CALLS = _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _BEGIN + "{% endif %}"

TEMPLATES = {
    "Hermes, Qwen 3": HERMES,
    "Qwen 3 Coder": QWEN_CODER,
    "GLM 4.5": GLM,
    "Kimi K2": KIMI,
    "LFM 2": LFM,
    "Command R7B": COHERE,
    "Llama 3.1": LLAMA,
    "Mistral 0.3": MISTRAL,
    "Mistral Small 3.2": MISTRAL_SMALL,
    "DeepSeek V3": DEEPSEEK,
}
