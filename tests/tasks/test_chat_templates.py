"""Chat templates cut where the user would speak: built in, and from tokenizer configurations."""

import json
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, Magpie
from asyncsynth.client.messages import Message
from asyncsynth.errors import ConfigurationError, TaskFailure
from asyncsynth.tasks.chat_templates import chatml, read_template

SYSTEM: Message = {"role": "system", "content": "Be brief."}
HEADERS = (
    "{{- bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.last and system else '') "
    "+ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def config(tmp_path: Path, template: Any, **tokens: Any) -> Path:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": template, "bos_token": "<s>", "eos_token": "</s>", **tokens}))
    return file


def test_chatml() -> None:
    assert chatml().before_user([]) == "<|im_start|>user\n"
    assert chatml("SmolLM2-135M-Instruct").before_user([]).startswith("<|im_start|>system\nYou are a helpful AI")
    assert chatml("SmolLM2").before_user([SYSTEM]) == chatml().before_user([SYSTEM])
    turns: list[Message] = [{"role": "user", "content": "{{ 1 }}"}, {"role": "assistant", "content": "b"}]
    assert chatml().before_user([SYSTEM, *turns]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{{ 1 }}<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\n"
    )


def test_a_template_with_headers_and_its_stop_texts(tmp_path: Path) -> None:
    template = read_template(config(tmp_path, HEADERS, eos_token={"content": "<|eot_id|>", "lstrip": False}))
    # Servers put the beginning-of-text token there themselves.
    assert template.before_user([]) == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert template.stop == ("<|eot_id|>",)
    assert read_template(tmp_path).before_user([SYSTEM]).startswith("<|start_header_id|>system")
    kept = read_template(config(tmp_path, HEADERS, add_bos_token=False))
    assert kept.before_user([]).startswith("<s><|start")
    assert kept.stop == ("<|eot_id|>", "</s>")


def test_a_template_that_puts_the_system_prompt_into_the_users_turn(tmp_path: Path) -> None:
    template = read_template(config(tmp_path, BRACKETS))
    assert template.stop == ("[/INST]", "</s>")
    turns: list[Message] = [SYSTEM, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert template.before_user(turns) == "[INST] a [/INST] b</s>[INST] Be brief.\n\n"
    with pytest.raises(TaskFailure, match="no such role"):
        template.before_user([{"role": "tool", "content": "x"}])


def test_templates_by_name_and_in_a_file_of_their_own(tmp_path: Path) -> None:
    both = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": HEADERS}]
    assert read_template(config(tmp_path, both)).before_user([])
    config(tmp_path, None)
    (tmp_path / "chat_template.jinja").write_text(BRACKETS)
    assert read_template(tmp_path).before_user([]) == "[INST] "


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat_template"),
        ("{% for %}", "could not be filled"),
        ("nothing", "leaves the user's turn out"),
        ("{{ strftime_now('%d') }}{{ messages[0].content }}", "strftime_now"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "unsafe"),
        ("{{ raise_exception('I refuse') }}", "I refuse"),
    ],
)
def test_templates_that_do_not_work(tmp_path: Path, template: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_template(config(tmp_path, template))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_template(tmp_path / "missing.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        read_template(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="not a tokenizer"):
        read_template(tmp_path / "a.json")


def test_the_text_is_fingerprinted_not_the_path(tmp_path: Path) -> None:
    llm = LLM(model="llama")
    settings = Magpie(llm=llm, chat_template=config(tmp_path, HEADERS)).settings()
    (tmp_path / "moved").mkdir()
    assert Magpie(llm=llm, chat_template=config(tmp_path / "moved", HEADERS)).settings() == settings
    assert Magpie(llm=llm, chat_template=config(tmp_path, BRACKETS)).settings() != settings
