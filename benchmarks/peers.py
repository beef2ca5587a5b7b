"""The other side of ``benchmarks/training.py``: TRL and the trainers of Transformers, in an environment of their own.

Reads a job as JSON from its first argument, prints what it measured as one line of JSON. Imports nothing of llmkit.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of the starter, with marks around what is learned."""


class Watch:
    """Times ``train()`` alone, and keeps the losses that a trainer logs."""

    def __init__(self) -> None:
        from transformers import TrainerCallback

        watch = self
        self.seconds, self._begun = 0.0, 0.0
        self.cpu_seconds, self._cpu_begun = 0.0, 0.0
        self.losses: list[float] = []
        self.peak_gib = 0.0

        class Callback(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                watch._begun, watch._cpu_begun = time.perf_counter(), time.process_time()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                watch.seconds = time.perf_counter() - watch._begun
                watch.cpu_seconds = time.process_time() - watch._cpu_begun
                watch.peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

            def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002 - upstream names
                logs = more["logs"]
                if "loss" in logs:
                    watch.losses.append(logs["loss"])

        self.callback = Callback()


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What all trainers are told alike."""
    return {
        "output_dir": job["output_dir"],
        "per_device_train_batch_size": job["batch_size"],
        "gradient_accumulation_steps": job.get("accumulation", 1),
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": job["bf16"],
        "disable_tqdm": True,
        "seed": 42,
        **({"train_sampling_strategy": "sequential"} if job.get("in_order") else {}),
        **({"train_sampling_strategy": job["strategy"]} if "strategy" in job else {}),
    }


def sft(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer with LoRA on prompts and completions."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    lora: Any = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    if job.get("adapter"):
        model, lora = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True), None
    watch = Watch()
    options: dict[str, Any] = {"max_length": None, "gradient_checkpointing": False, "packing": False}
    if "messages" in job["rows"][0]:  # TRL knows the template of the starter only as it is written here
        tokenizer.chat_template, options["assistant_only_loss"] = CHATML, True
    elif "prompt" in job["rows"][0]:
        options["completion_only_loss"] = True
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**arguments(job), **options),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watch.callback],
    )
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    trainer.train()
    return {
        "losses": watch.losses,
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "peak_gib": watch.peak_gib,
        "tokens": sum(lengths),
    }


def seq2seq(job: dict[str, Any]) -> dict[str, Any]:
    """Transformers' Seq2SeqTrainer, all weights."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSeq2SeqLM.from_pretrained(job["model"])
    watch = Watch()
    trainer = Seq2SeqTrainer(
        model,
        args=Seq2SeqTrainingArguments(**arguments(job)),
        train_dataset=Dataset.from_list(job["rows"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=[watch.callback],
    )
    trainer.train()
    return {"losses": watch.losses, "seconds": watch.seconds}


def span(job: dict[str, Any]) -> dict[str, Any]:
    """Transformers' Trainer on a question-answering head."""
    from datasets import Dataset
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    watch = Watch()
    trainer = Trainer(
        AutoModelForQuestionAnswering.from_pretrained(job["model"]),
        args=TrainingArguments(**arguments(job)),
        train_dataset=Dataset.from_list(job["rows"]),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[watch.callback],
    )
    trainer.train()
    return {"losses": watch.losses, "seconds": watch.seconds}


def main() -> None:
    job = json.loads(open(sys.argv[1], encoding="utf-8").read())  # noqa: SIM115, PTH123
    result = {"sft": sft, "seq2seq": seq2seq, "span": span}[job["trainer"]](job)
    result["whole_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result))


if __name__ == "__main__":
    main()
