"""Conversations by chat templates: as transformers renders them, and the same however often a preparation goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import CHAT, samples_of, write_lines
from stoker.preparation import examples, pipeline, rules, sources
from stoker.preparation.tokenizer import TextTokenizer
from texts import BEGIN, END

TEMPLATES = [
    (
        "{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    ),
    (
        "{{ bos_token }}{% for m in messages %}\n    {%- if m.role == 'user' %}\n<u>{{ m.content }}</u>\n"
        "    {%- else %}\n<a>{{ m.content | tojson }}{{ eos_token }}</a>\n    {%- endif %}\n{% endfor %}"
    ),
    (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{% for m in messages %}{{ loop.index0 ~ m.content }}{% break %}{% endfor %}"
    ),
    "{{ {'b': ['é', 1], 'a': '<'} | tojson }} {{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true) }}",
    "{{ [1, {'a': 2}] | tojson(indent=2) }} {{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}",
    "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ functions is defined }}",
    (
        "{% for m in messages %}{% set x = 1 %}{% if m.role == 'assistant' %}\n  {% generation %}\n{{ m.content }}"
        "{% set x = 2 %}{{ x }}\n  {% endgeneration %}{{ x }}{% endif %}\n{% endfor %}"
    ),
    (
        "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ mask_token }}|{{ cls_token is defined }}|"
        "{{ sep_token is defined }}|{{ sep_token }}"
    ),
    "{{ strftime_now('%Y-%m-%d') }}",
    "{{ cls_token + 'x' }}",
]


def write_folder(folder: Path, tokenizer: Path, template: Any, **settings: Any) -> Path:
    """A tokenizer with this chat template."""
    folder.mkdir(exist_ok=True)
    shutil.copy(tokenizer / "tokenizer.json", folder)
    begin = {"__type": "AddedToken", "content": BEGIN, "special": True}
    settings = {"bos_token": begin, "eos_token": END, "chat_template": template, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_transformers_renders_them(template: str, tokenizer: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path, tokenizer, template, unk_token="<unk>", mask_token="<mask>", pad_token="<pad>")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = TextTokenizer(folder).chat_template
    for messages in (CHAT, CHAT[1:], CHAT[1:3]):
        for is_prompt in (False, True):
            try:
                want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt)
            except Exception as error:  # noqa: BLE001
                with pytest.raises(ValueError, match=str(error)):
                    ours.render(messages, add_generation_prompt=is_prompt)
            else:
                assert ours.render(messages, add_generation_prompt=is_prompt) == want


def test_a_template_has_the_other_special_tokens(tokenizer: Path, tmp_path: Path) -> None:
    template = "{{ additional_special_tokens | join(' ') }}"
    tokens = ["<x>", {"content": "<y>"}]
    folder = write_folder(tmp_path, tokenizer, template, additional_special_tokens=tokens)
    assert TextTokenizer(folder).chat_template.render(CHAT, add_generation_prompt=False) == "<x> <y>"


def test_of_named_templates_the_default_is_taken(tokenizer: Path, tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    assert TextTokenizer(write_folder(tmp_path, tokenizer, named)).chat_template.text == "d"
    folder = write_folder(tmp_path, tokenizer, named[:1])
    source = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}])
    with pytest.raises(examples.ChatTemplateError, match="there are chat templates named rag, but none named default"):
        stoker.prepare(source, tmp_path / "out", folder, processes=1)
    with pytest.raises(ValueError, match="the chat template is int, not text"):
        TextTokenizer(write_folder(tmp_path, tokenizer, 5))


# ---------------------------------------------------------------- changes
def test_another_chat_template_is_another_data_set(tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}])
    folder = write_folder(tmp_path / "tokenizer", tokenizer, TEMPLATES[1])
    stoker.prepare(source, tmp_path / "out", folder, processes=1)
    (folder / "chat_template.jinja").write_text(TEMPLATES[0])
    with pytest.raises(FileExistsError, match="other sources or arguments"):
        stoker.prepare(source, tmp_path / "out", folder, processes=1)


def change_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATES[0])


def change_end(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": BEGIN}))


def change_vocabulary(folder: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_tokens(["Hello"])
    made.save(str(folder / "tokenizer.json"))


CHANGES = [change_template, change_end, change_vocabulary]


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_has_changed_is_read_again(change: Any, tokenizer: Path, tmp_path: Path) -> None:
    """In the same process, ahead of time and on the fly."""
    folder = write_folder(tmp_path / "tokenizer", tokenizer, TEMPLATES[1])
    source = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT[1:]}])
    with stoker.MDSWriter(columns={"messages": "json"}, out=tmp_path / "raw") as out:
        out.write({"messages": CHAT[1:]})
    seen = []
    for number in range(2):
        stoker.prepare(source, tmp_path / str(number), folder, processes=1)
        stream = stoker.Stream(local=tmp_path / "raw")
        with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", tokenizer=folder) as loader:
            (sample,) = samples_of(tmp_path / str(number))
            assert loader.dataset.read("raw", 0, 0)["tokens"].tolist() == sample["tokens"]
        seen.append(sample)
        change(folder)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_changes_during_a_preparation_is_refused(
    change: Any, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "tokenizer", tokenizer, TEMPLATES[1])
    source = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT[1:]}])

    def run(job: Any, numbers: Any) -> Any:
        change(folder)
        for number in numbers:
            job.write_part(number)
            yield number

    with pytest.raises(ValueError, match="is another tokenizer than the one that the preparation began with"):
        stoker.prepare(source, tmp_path / "out", folder, engine=run)

    with stoker.MDSWriter(columns={"messages": "json"}, out=tmp_path / "raw") as out:
        out.write({"messages": CHAT[1:]})
    stream = stoker.Stream(local=tmp_path / "raw")
    with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", tokenizer=folder) as loader:
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        with pytest.raises(ValueError, match="is another tokenizer than the one that the preparation began with"):
            loader.dataset.read("raw", 0, 0)


# ---------------------------------------------------------------- dates
def test_a_preparation_that_goes_on_another_day_keeps_its_date(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ strftime_now('%d %B %H:%M') }} {{ date_string }} {{ m.content }}{% endfor %}"
    folder = write_folder(tmp_path / "tokenizer", tokenizer, template)
    for name in "ab":
        write_lines(tmp_path / "raw" / f"{name}.jsonl", [{"messages": CHAT[1:3]}])
    monkeypatch.setattr(sources, "_LEAST_PART", 1)
    monkeypatch.setattr(pipeline, "today", lambda: "2031-05-07")

    def one(job: Any, numbers: Any) -> Any:
        job.write_part(numbers[0])
        yield numbers[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stoker.prepare(tmp_path / "raw", tmp_path / "out", folder, engine=one)
    monkeypatch.setattr(pipeline, "today", lambda: "2032-01-01")
    for _ in range(2):
        assert stoker.prepare(tmp_path / "raw", tmp_path / "out", folder, processes=1).samples == 2
    said = "07 May 00:00 07 May 2031"
    texts = [TextTokenizer(folder).decode(sample["tokens"]) for sample in samples_of(tmp_path / "out")]
    assert texts == [f"{said} Hi{said} Hello.{END}"] * 2


def test_a_cache_keeps_the_date_of_its_beginning(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(
        tmp_path / "tokenizer", tokenizer, "{% for m in messages %}{{ date_string }} {{ m.content }}{% endfor %}"
    )
    with stoker.MDSWriter(columns={"messages": "json"}, out=tmp_path / "raw", size_limit=350) as out:
        for _ in range(2):
            out.write({"messages": CHAT[1:3]})
    texts = []
    for shard in (0, 1):
        monkeypatch.setattr(rules, "today", lambda day=7 + shard: f"2031-05-{day:02}")
        stream = stoker.Stream(local=tmp_path / "raw")
        with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", tokenizer=folder) as loader:
            texts.append(TextTokenizer(folder).decode(loader.dataset.read("raw", shard, 0)["tokens"].tolist()))
    assert texts == [f"07 May 2031 Hi07 May 2031 Hello.{END}"] * 2
