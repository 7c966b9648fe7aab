"""One optimizer step of a TRL trainer on a file. Run by path with the Python of the trainers' environment.

    python train.py FOLDER sft NAME.jsonl ...

Says for each file, as a line of JSON: the loss, or the error, and what is missing in the text that the model sees. What
a trainer reads must hold every text of the row: a template or a table that loses one raises nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
warnings.simplefilter("ignore")

# Roles, tool calls and tools as Qwen2.5's template writes them, and content that is text only.
TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n' }}{%- endif %}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] != 'system' %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def tiny_tokenizer() -> Any:
    """One token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate([*special, *letters])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def tiny_model(tokenizer: Any, trainer: str, folder: Path) -> Any:
    """A random two-layer Qwen2, from a folder: DPOTrainer loads its reference model from there."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    torch.manual_seed(1)
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        num_labels=1,
    )
    kind = Qwen2ForSequenceClassification if trainer == "reward" else Qwen2ForCausalLM
    kind(shape).save_pretrained(folder)
    return kind.from_pretrained(folder)


def wanted(row: dict[str, Any]) -> list[str]:
    """The texts of a row that the model must see."""
    texts: list[str] = []

    def of(value: Any) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list):
            for item in value:
                of(item)
        elif isinstance(value, dict) and "role" in value:
            of(value["content"])
            for call in value.get("tool_calls") or []:
                function = call["function"]
                texts.append(f'"name": "{function["name"]}", "arguments": {json.dumps(function["arguments"])}')
        elif isinstance(value, dict) and value.get("type") == "text":
            of(value["text"])

    for column in ("messages", "prompt", "completion", "chosen", "rejected"):
        of(row.get(column))
    return texts + [tool["function"]["description"] for tool in json.loads(row.get("tools") or "[]")]


def train(trainer: str, file: Path, work: Path) -> dict[str, Any]:
    """One step."""
    import datasets
    import trl

    kind = "json" if file.suffix == ".jsonl" else "parquet"
    rows = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(work / "cache"))
    tokenizer = tiny_tokenizer()
    config = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig}[trainer](
        output_dir=str(work / "out"),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        max_length=4096,
        disable_tqdm=True,
        save_strategy="no",
    )
    made = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "reward": trl.RewardTrainer}[trainer](
        model=tiny_model(tokenizer, trainer, work / "model"),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    loss = made.train().training_loss
    lost: list[str] = []
    for before, after in zip(rows, made.train_dataset, strict=True):
        seen = " ".join(
            tokenizer.decode(value) for name, value in after.items() if name.endswith(("input_ids", "_ids"))
        )
        plain = _plain(seen)
        lost += [text for text in wanted(before) if _plain(text) not in plain]
    return {"file": file.name, "rows": len(rows), "loss": round(float(loss), 3), "lost": lost[:3]}


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def main() -> None:
    logging.disable(logging.WARNING)
    folder, trainer = Path(sys.argv[1]), sys.argv[2]
    for name in sys.argv[3:]:
        try:
            said = train(trainer, folder / name, folder / "work" / name)
        except Exception as error:
            said = {"file": name, "error": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
