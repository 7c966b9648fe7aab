"""Make the two models that the real vLLM serves. Run by path with the Python of its environment.

    python make_models.py FOLDER GGUF

- FOLDER/SmolLM2-135M-Instruct: the real model, out of the GGUF that the embedded server uses, as an ordinary
  model folder: weights in bfloat16, tokenizer, chat template.
- FOLDER/Qwen2.5-tiny: two layers of Qwen2.5's architecture with random weights, a BPE tokenizer trained on the
  texts of this project, Qwen2.5's special tokens and its ChatML template. What it says is noise; that it is
  served, batched, constrained and cut off as Qwen2.5 is, is real.

A folder that is there is complete and stays: each is made beside and moved.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

SMOL, TINY = "SmolLM2-135M-Instruct", "Qwen2.5-tiny"
TEXTS = Path(__file__).resolve().parent.parent.parent / "docs"

# Qwen2.5's template without its tools.
CHATML = """\
{%- if messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (loop.first and message['role'] == 'system') %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def smollm2(gguf: Path, folder: Path) -> None:
    """The packaged GGUF as a model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def qwen_tiny(folder: Path) -> None:
    """A random two-layer Qwen2ForCausalLM with a tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train([str(path) for path in sorted(TEXTS.rglob("*.md"))], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    torch.manual_seed(1)
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,  # 32 for each head: the least that vLLM's attention on CPUs takes
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    target, gguf = Path(sys.argv[1]), Path(sys.argv[2])
    for name, make in ((SMOL, lambda folder: smollm2(gguf, folder)), (TINY, qwen_tiny)):
        if (target / name).is_dir():
            continue
        partial = target / f"{name}.part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(target / name)
        print(f"made {target / name}", flush=True)


if __name__ == "__main__":
    main()
