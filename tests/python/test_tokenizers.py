"""Tokenizers of every format: ids are those of their own packages, whole and in parts."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stoker
from preparing import samples_of, write_lines
from stoker.preparation.tokenizer import TextTokenizer
from texts import BEGIN, END, TEXTS, ids_of, write_tokenizer

GPT2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizer" / "gpt2"


def write_byte_level(folder: Path) -> str:
    write_tokenizer(folder)
    return str(folder)


def write_metaspace(folder: Path) -> str:
    """As Llama 2 has it: the beginning of what is tokenized is marked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], show_progress=False)
    made.train_from_iterator([*TEXTS, "a b c d x y words in rows"] * 3, trainer)
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def write_sentencepiece(folder: Path) -> str:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "a b c d x y words in rows"] * 20),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return str(folder / "tokenizer.model")


def write_merges(folder: Path) -> str:
    """The same as the byte-level tokenizer.json, in the two files that GPT-2 and Megatron-LM have."""
    write_tokenizer(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps({**model["vocab"], END: 0}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer.json").unlink()
    return str(folder)


def write_tiktoken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """GPT-2's files, where tiktoken looks for what it has fetched."""
    pytest.importorskip("tiktoken")
    if not GPT2.is_dir():
        pytest.skip("needs ../shared, which is not here")
    base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copy(GPT2 / name, folder / hashlib.sha1((base + name).encode()).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return "tiktoken:gpt2"


def parts(tokenizer: TextTokenizer, text: str, cuts: list[int]) -> list[int]:
    """The ids of a text that is tokenized in parts."""
    bounds = [0, *cuts, len(text)]
    first, *rest = [text[begin:end] for begin, end in itertools.pairwise(bounds)]
    return [i for ids in (*tokenizer.encode([first]), *tokenizer.encode_rests(rest)) for i in ids]


@pytest.mark.parametrize("write", [write_byte_level, write_metaspace, write_sentencepiece, write_merges])
def test_parts_of_a_text_have_the_ids_of_the_whole(
    write: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = TextTokenizer(write(tmp_path_factory.mktemp("tokenizer")))

    @given(st.lists(st.sampled_from(["a", "words", "rows", "x", "in"]), min_size=1, max_size=12), st.data())
    def check(words: list[str], data: st.DataObject) -> None:
        text = " ".join(words)
        spaces = [i for i, character in enumerate(text) if character == " "]
        cuts = data.draw(st.lists(st.sampled_from(spaces), unique=True).map(sorted)) if spaces else []
        assert parts(tokenizer, text, cuts) == tokenizer.encode([text])[0]

    check()


def test_vocabulary_and_merges_are_the_tokenizer_that_they_are_of(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole, apart = TextTokenizer(write_byte_level(tmp_path / "one")), TextTokenizer(write_merges(tmp_path / "two"))
    assert apart.encode(TEXTS) == whole.encode(TEXTS) and apart.vocab_size == whole.vocab_size
    assert apart.eos_token_id == whole.eos_token_id == 0
    assert apart.encode([f"x{END}x"])[0][1] == 0  # a special token is one wherever it stands
    assert apart.sha256 != whole.sha256


def test_sentencepiece_gives_its_own_ids_and_special_tokens(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    path = write_sentencepiece(tmp_path)
    model = SentencePieceProcessor(model_file=path)
    tokenizer = TextTokenizer(path)
    assert tokenizer.encode(TEXTS) == [model.encode(text) for text in TEXTS]
    assert tokenizer.vocab_size == model.vocab_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, None)
    assert tokenizer.encode([f"a{BEGIN}b</s>"])[0] == [*model.encode("a"), 1, *model.encode("b"), 2]
    assert tokenizer.before == tokenizer.behind == []
    assert tokenizer.decode(tokenizer.encode([TEXTS[1]])[0]) == TEXTS[1]


def test_tiktoken_gives_gpt2s_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = TextTokenizer(write_tiktoken(tmp_path, monkeypatch))
    theirs = ByteLevelBPETokenizer(str(GPT2 / "encoder.json"), str(GPT2 / "vocab.bpe"))
    assert tokenizer.encode(TEXTS) == [theirs.encode(text).ids for text in TEXTS]
    assert tokenizer.encode(TEXTS) == TextTokenizer(GPT2).encode(TEXTS)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (50257, 50256)
    assert tokenizer.encode([f"x{END}"])[0][-1] == 50256
    assert tokenizer.decode(tokenizer.encode([TEXTS[2]])[0]) == TEXTS[2]
    assert TextTokenizer("tiktoken:gpt2").sha256 == tokenizer.sha256 != TextTokenizer(GPT2).sha256


@pytest.mark.parametrize("write", [write_sentencepiece, write_merges, write_metaspace])
def test_what_is_prepared_has_the_tokenizers_ids_and_end(write: Callable[[Path], str], tmp_path: Path) -> None:
    name = write(tmp_path)
    tokenizer = TextTokenizer(name)
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    stoker.prepare(source, tmp_path / "out", name, processes=2)
    want = [[*tokenizer.encode([text])[0], tokenizer.eos_token_id] for text in TEXTS]
    assert [sample["tokens"] for sample in samples_of(tmp_path / "out")] == want
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["stoker"]["tokenizer"]["sha256"] == tokenizer.sha256


def test_tiktoken_prepares_in_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    name = write_tiktoken(tmp_path / "cache", monkeypatch)
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    stoker.prepare(source, tmp_path / "out", name, processes=2)
    want = [[*TextTokenizer(name).encode([text])[0], 50256] for text in TEXTS]
    assert [sample["tokens"] for sample in samples_of(tmp_path / "out")] == want


def test_a_chat_template_beside_a_model_is_used(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    source = write_lines(tmp_path / "a.jsonl", [{"messages": chat}])
    stoker.prepare(source, tmp_path / "out", tmp_path, processes=1)
    (sample,) = samples_of(tmp_path / "out")
    assert [i for i in sample["tokens"] if i in (1, 2)] == [1, 2, 1, 2]
    assert [i for i in sample["labels"] if i != -100] == TextTokenizer(tmp_path).encode(["b</s>"])[0]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tiktoken:nothing", FileNotFoundError, "tiktoken has no encoding 'nothing'"),
        ("ranks.model", ValueError, "is not a model of SentencePiece"),
        ("broken/tokenizer.json", ValueError, "is not a tokenizer"),
        ("broken/merges", ValueError, "are no vocabulary of GPT-2's form"),
        ("empty", FileNotFoundError, "has no tokenizer.json, tokenizer.model, or vocab.json and merges.txt"),
        ("absent.model", FileNotFoundError, "there is no tokenizer at"),
    ],
)
def test_what_is_no_tokenizer_is_told(name: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    pytest.importorskip("sentencepiece")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "merges").mkdir(parents=True)
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / "broken" / "merges" / file).write_text("nothing")
    (tmp_path / "ranks.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(error, match=message):
        TextTokenizer(name if ":" in name else tmp_path / name)


def test_a_hub_that_can_not_be_reached_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(name: str, file: str, *, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("there is no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"'some/one' is neither .* from the Hugging Face hub: there is no net"):
        TextTokenizer("some/one")
    assert len(asked) > 1 and [local for local in asked if not local] == [False]


def test_the_package_tokenizers_itself_agrees(tmp_path: Path) -> None:
    tokenizer: Any = TextTokenizer(write_byte_level(tmp_path))
    assert tokenizer.encode(TEXTS) == [ids_of(tmp_path, text) for text in TEXTS]


# ---------------------------------------------------------------- tokenizers that know little
def write_words(folder: Path, words: list[str], *, unknown: str | None = None, around: bool = True) -> Path:
    """A tokenizer of these words, which puts "[" before a document and "]" behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["[", "]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        made.post_processor = processors.TemplateProcessing("[ $A ]", special_tokens=[("[", 0), ("]", 1)])
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_tokenizer_is_asked_by_a_text_that_it_knows(tmp_path: Path) -> None:
    for words, unknown in ((["a", "x"], None), (["0"], None), (["数", "x"], None), (["x", "?"], "?"), (["x"], "[")):
        tokenizer = TextTokenizer(write_words(tmp_path, words, unknown=unknown))
        assert (tokenizer.before, tokenizer.behind) == ([0], [1]), words
        assert tokenizer.encode([" ".join(words)]) == [[*range(2, len(words) + 2)]]
        assert tokenizer.encode_rests([f" {words[0]}"]) == [[2]]


def test_of_a_tokenizer_without_any_text_nothing_is_known_around_documents(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.before == tokenizer.behind == []
    assert tokenizer.encode(["a"]) == tokenizer.encode_rests([" a"]) == [[]]


def test_a_text_that_a_tokenizer_does_not_know_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = write_words(tmp_path, ["x"])
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    with pytest.raises(ValueError, match="the tokenizer can't encode a text: WordLevel error: Missing"):
        stoker.prepare(source, tmp_path / "out", path, processes=1)


def test_what_is_in_a_vocabulary_and_what_templates_use_are_two_things(tmp_path: Path) -> None:
    """A masked token need not have an id."""
    path = write_words(tmp_path, ["x"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>", "eos_token": "]"}))
    assert TextTokenizer(path).eos_token_id == 1
