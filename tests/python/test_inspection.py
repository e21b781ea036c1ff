"""Looking at data sets and joining them: `stoker inspect` and `stoker merge`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import CHAT, samples_of, write_lines
from stoker.cli import main
from texts import BEGIN, END, TEXTS, ids_of


def test_inspect_tells_what_a_directory_holds(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "chat.jsonl", [{"messages": CHAT}] * 5 + [{"prompt": "x", "response": "y"}])
    counts = stoker.prepare(source, tmp_path / "chat", tokenizer, kind="finetuning", processes=1)
    found = stoker.inspect(tmp_path / "chat")
    assert (found.samples, found.tokens, found.loss_tokens) == (6, counts.tokens, counts.loss_tokens)
    assert found.kind == "finetuning" and found.shards == found.num_hashed == 1
    assert found.columns == {"input_ids": "ndarray:uint16", "labels": "ndarray:int16"}
    assert sum(count for *_, count in found.histogram) == 6 and found.histogram[0] == (2, 3, 1)
    assert all(begin <= end for begin, end, _ in found.histogram)
    assert [len(sample["tokens"]) for sample in found.examples][:2] == [found.lengths[3]] * 2
    assert main(["inspect", str(tmp_path / "chat"), "--tokenizer", str(tokenizer), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "6 in 1 shards" in out and "1 files are what the index says" in out and "Be brief." in out
    (path,) = (tmp_path / "chat").glob("shard*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["inspect", str(tmp_path / "chat")]) == 1
    assert "is not what index.json says: its sha256 differs" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"there is no .*index.json"):
        stoker.inspect(tmp_path)
    with pytest.raises(ValueError, match="lists no sample"):
        with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=tmp_path / "none"):
            pass
        stoker.inspect(tmp_path / "none")


@pytest.mark.parametrize("compression", ["zstd:1", "gz:1", "bz2", None])
def test_shards_of_every_compression_are_prepared_loaded_looked_at_and_counted(
    compression: str | None, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS * 3])
    out = tmp_path / "out"
    counts = stoker.prepare(source, out, tokenizer, processes=1, compression=compression)
    samples = samples_of(out)
    assert samples == [{"tokens": ids_of(tokenizer, text) + ids_of(tokenizer, END)} for text in TEXTS * 3]
    found = stoker.inspect(out)
    assert (found.compression, found.tokens, found.num_hashed) == (compression, counts.tokens, 1)
    assert [sample["tokens"].tolist() for sample in found.examples] == [sample["tokens"] for sample in samples[:3]]
    totals = stoker.count_tokens(out)
    assert totals.tokens == [counts.tokens] and totals.longest_sample == [found.lengths and found.lengths[3]]
    assert not list((tmp_path / "tmp").iterdir())


def test_merge_joins_data_sets_by_their_indexes(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, texts = tmp_path / "all", TEXTS * 3
    for i, name in enumerate(("b/deep", "a", "c")):
        source = write_lines(tmp_path / f"{i}.jsonl", [{"text": f"{text} {name}"} for text in texts])
        stoker.prepare(source, root / name, tokenizer, processes=1)
    assert main(["merge", str(root)]) == 0 and "3 shards" in capsys.readouterr().out
    end = ids_of(tokenizer, END)
    want = [{"tokens": ids_of(tokenizer, f"{text} {name}") + end} for name in ("a", "b/deep", "c") for text in texts]
    assert samples_of(root) == want
    assert main(["merge", str(root)]) == 1 and "is there already" in capsys.readouterr().err
    assert main(["merge", str(root), "--overwrite"]) == 0
    assert samples_of(root) == want
    stream = stoker.Stream(local=root)
    with stoker.DataLoader(stream, seq_len=8, batch_size=2, vocab_size=512) as loader:
        assert sum(int(batch["input_ids"].numel()) for batch in loader) > 0
    with pytest.raises(ValueError, match="vocab_size is 100"):
        stoker.DataLoader(stream, seq_len=8, batch_size=2, vocab_size=100)
    source = write_lines(tmp_path / "chat.jsonl", [{"messages": CHAT}])
    stoker.prepare(source, root / "d", tokenizer, processes=1)
    assert main(["merge", str(root), "--overwrite"]) == 1 and "has other columns" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["merge", str(tmp_path / "empty")]) == 1 and "no directory below" in capsys.readouterr().err


def test_merge_takes_each_data_set_once_and_no_hidden_one(tokenizer: Path, tmp_path: Path) -> None:
    root = tmp_path / "all"
    for name in ("a/one", "a/two", "b", ".stoker/c", "d/.parts/000000"):
        source = write_lines(tmp_path / "a.jsonl", [{"text": name}])
        stoker.prepare(source, root / name, tokenizer, processes=1)
    assert stoker.merge(root / "a") == 2
    assert stoker.merge(root) == 3 == stoker.merge(root, overwrite=True)
    end = ids_of(tokenizer, END)
    assert samples_of(root) == [{"tokens": ids_of(tokenizer, name) + end} for name in ("a/one", "a/two", "b")]


def test_merge_refuses_data_sets_whose_special_tokens_differ(tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    for name, end in (("a", END), ("b", BEGIN)):
        stoker.prepare(source, tmp_path / "all" / name, tokenizer, processes=1, eos_text=end)
    with pytest.raises(ValueError, match=r"b has other columns, or another tokenizer, than .*a: they can't be one"):
        stoker.merge(tmp_path / "all")


# ---------------------------------------------------------------- without tokens
TURNS = [{"input_ids": [20, 21], "labels": [22]}]


@pytest.mark.parametrize(("columns", "row"), [({"text": "str"}, {"text": "x"}), ({"turns": "json"}, {"turns": TURNS})])
def test_merge_joins_data_sets_without_tokens(columns: dict[str, str], row: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        with stoker.MDSWriter(columns=columns, out=tmp_path / "all" / name, compression="gz") as out:
            out.write(row)
    assert stoker.merge(tmp_path / "all") == 2
    found = stoker.inspect(tmp_path / "all")
    assert (found.samples, found.examples, found.tokenizer) == (2, [row, row], None)


def test_turns_keep_the_tokenizer_of_their_ids(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"prompt": "a question", "response": "its answer"}])
    for name in ("a", "b"):
        stoker.prepare(source, tmp_path / "all" / name, tokenizer, processes=1, foundry_compatible=True)
    assert stoker.merge(tmp_path / "all") == 2
    found = stoker.inspect(tmp_path / "all")
    assert found.tokenizer == stoker.inspect(tmp_path / "all" / "a").tokenizer and found.tokenizer is not None
    assert main(["inspect", str(tmp_path / "all"), "--tokenizer", str(tokenizer), "--samples", "1"]) == 0
    assert '[{"input_ids": "a question", "labels": "its answer"}]' in capsys.readouterr().out
    other = shutil.copytree(tokenizer, tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    stoker.prepare(source, tmp_path / "all" / "c", other, processes=1, foundry_compatible=True)
    with pytest.raises(ValueError, match="c has other columns, or another tokenizer"):
        stoker.merge(tmp_path / "all", overwrite=True)


@pytest.mark.parametrize(
    ("columns", "row", "shown"),
    [
        ({"text": "str", "n": "int"}, {"text": "sée", "n": 3}, '{"n": 3, "text": "sée"}'),
        ({"turns": "json"}, {"turns": TURNS}, f'{{"turns": {json.dumps(TURNS)}}}'),
        ({"raw": "bytes"}, {"raw": b"a\xff"}, '{"raw": "b\'a\\\\xff\'"}'),
    ],
)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_inspect_looks_at_data_without_tokens(
    columns: dict[str, str],
    row: dict[str, Any],
    shown: str,
    compression: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {"compression": compression, "hashes": ["sha256"], "size_limit": 100}
    with stoker.MDSWriter(columns=columns, out=tmp_path / "x", **options) as out:
        for _ in range(3):
            out.write(row)
    found = stoker.inspect(tmp_path / "x", examples=2)
    assert found.samples == 3 and found.shards == found.num_hashed > 1
    assert found.tokens is found.loss_tokens is found.kind is found.lengths is None and not found.histogram
    assert found.columns == columns and found.compression == compression and found.raw_bytes > 100
    assert found.examples == [row, row]
    assert main(["inspect", str(tmp_path / "x"), "--samples", "1"]) == 0
    told = capsys.readouterr().out
    assert f"sample 0: {shown}" in told and "3 in " in told and "sample 1:" not in told and " tokens  " not in told
    with pytest.raises(ValueError, match="examples is -1: it must be a whole number from 0"):
        stoker.inspect(tmp_path / "x", examples=-1)
    assert main(["inspect", str(tmp_path / "x"), "--samples", "-1"]) == 1
    (shard,) = (tmp_path / "x").glob("shard.00001.mds*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(stoker.CorruptShardError, match="sha256 differs"):
        stoker.inspect(tmp_path / "x")
