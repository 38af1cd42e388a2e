"""What a user would write: transformers' Trainer with peft, as its documentation shows it; random batches.

Same base, LoRA settings, rows, batch, learning rate and precision as the project's loop; padding to the longest row of
a batch, loss on the answer's tokens, the library's own attention, optimiser and schedule. Logs as often as the loop.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from polypersona.models.loading import load_tokenizer
from polypersona.models.location import locate_model
from polypersona.recipe_sections import PRESETS
from polypersona.training.encoding import encode_examples


def run_trainer(examples: Sequence[Any], dtype: str, max_length: int, steps: int) -> dict[str, float]:
    """Train and return tokens, CPU-seconds and seconds of `Trainer.train`."""
    settings = PRESETS["tiny"]
    tokenizer = load_tokenizer("tiny")
    rows = encode_examples(tokenizer, examples, max_length).rows
    dataset = [
        {
            "input_ids": list(row.ids),
            "attention_mask": [1] * len(row.ids),
            "labels": [-100] * (len(row.ids) - row.num_answer) + list(row.ids[len(row.ids) - row.num_answer :]),
        }
        for row in rows
    ]
    model = AutoModelForCausalLM.from_pretrained(locate_model("tiny"), dtype=torch.float32)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=get_peft_model(model, lora),
            args=TrainingArguments(
                output_dir=folder,
                use_cpu=True,
                bf16=dtype == "bf16",
                per_device_train_batch_size=settings.global_batch,
                max_steps=steps,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                max_grad_norm=settings.max_grad_norm,
                lr_scheduler_type="cosine",
                warmup_steps=settings.warmup_ratio,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=7,
            ),
            train_dataset=dataset,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
        )
        cpu, wall = time.process_time(), time.perf_counter()
        trainer.train()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"tokens": sum(len(row.ids) for row in rows), "cpu_s": cpu, "wall_s": wall, "steps": steps}
