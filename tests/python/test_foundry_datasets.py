"""LLM Foundry's data sets: samples as its collators take them, by number and by torch's DataLoader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("stoker.streaming")

import stoker  # noqa: E402  # after the checks
import stoker.foundry as foundry  # noqa: E402
from foundry_tokenizers import make_tokenizer  # noqa: E402
from stoker.foundry import errors  # noqa: E402
from stoker.foundry.python_loader import check_num_samples  # noqa: E402

PAD, EOS, NONE = 1, 2, -100
TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def write(folder: Path, columns: dict[str, str], *samples: dict[str, Any]) -> str:
    with stoker.MDSWriter(columns=columns, out=folder) as out:
        for sample in samples:
            out.write(sample)
    return str(folder)


def text_dataset(local: str, **changes: Any) -> Any:
    arguments = {"tokenizer": make_tokenizer(PAD, EOS), "max_seq_len": 4, "local": local, **changes}
    return foundry.StreamingTextDataset(**arguments)


def chat_dataset(local: str, **changes: Any) -> Any:
    arguments = {"tokenizer": make_tokenizer(PAD, EOS), "max_seq_len": 4, "local": local, **changes}
    return foundry.StreamingFinetuningDataset(**arguments)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("encoding", ["bytes", "ndarray", "ndarray:"])
def test_tokens_of_any_type_are_int64_and_cut(encoding: str, dtype: str, tmp_path: Path) -> None:
    tokens = np.arange(3, 9).astype(dtype)
    column = f"{encoding}{dtype}" if encoding == "ndarray:" else encoding
    sample = {"tokens": tokens.tobytes() if encoding == "bytes" else tokens}
    dataset = text_dataset(write(tmp_path / "a", {"tokens": column}, sample, sample), token_encoding_type=dtype)
    assert dataset[0].dtype == torch.int64 and dataset[0].tolist() == [3, 4, 5, 6]
    assert [sample.tolist() for sample in dataset[0:2]] == [[3, 4, 5, 6]] * 2 and dataset[-1].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("dtype", TYPES)
def test_input_ids_of_any_type_are_a_turn_of_lists(dtype: str, tmp_path: Path) -> None:
    ids, labels = np.arange(3, 9).astype(dtype), np.arange(5, 8).astype(dtype)
    columns = {"input_ids": "bytes", "labels": f"ndarray:{dtype}"}
    local = write(tmp_path / "a", columns, {"input_ids": ids.tobytes(), "labels": labels})
    assert chat_dataset(local, token_encoding_type=dtype)[0] == {
        "turns": [{"input_ids": [3, 4, 5, 6], "labels": [5, 6, 7]}]
    }


def test_texts_are_tokenized_cut_and_padded(tmp_path: Path) -> None:
    local = write(tmp_path / "a", {"text": "str"}, {"text": "10 11"}, {"text": "10 11 12 13 14"})
    samples = text_dataset(local)[:]
    assert [sample["input_ids"] for sample in samples] == [[10, 11, PAD, PAD], [10, 11, 12, 13]]
    with pytest.raises(RuntimeError, match="If tokenizing on-the-fly, tokenizer must have a pad_token_id"):
        _ = text_dataset(local, tokenizer=make_tokenizer(None, EOS))[0]


def test_examples_are_turns(tmp_path: Path) -> None:
    turns = [{"input_ids": [10] * 9, "labels": [11]}]
    assert chat_dataset(write(tmp_path / "a", {"turns": "json"}, {"turns": turns}))[0] == {"turns": turns}
    local = write(tmp_path / "b", {"prompt": "str", "response": "str"}, {"prompt": "10", "response": "11"})
    (turn,) = chat_dataset(local)[0]["turns"]
    assert (turn["input_ids"], turn["labels"]) == ([10], [11])


def test_samples_of_other_columns_are_told(tmp_path: Path) -> None:
    local = write(tmp_path / "a", {"x": "str"}, {"x": "y"})
    with pytest.raises(RuntimeError, match="needs samples to have a `text` or `tokens` column"):
        _ = text_dataset(local)[0]
    with pytest.raises(errors.UnknownExampleTypeError, match="Unknown example type"):
        _ = chat_dataset(local)[0]
    local = write(tmp_path / "b", {"input_ids": "json", "labels": "json"}, {"input_ids": [1], "labels": [1]})
    with pytest.raises(ValueError, match=r"Expect input_ids to be bytes or numpy.ndarray type, but got <class 'list'>"):
        _ = chat_dataset(local)[0]


def test_wrong_types_and_splits_are_told_before_the_disk_is_read(tmp_path: Path) -> None:
    for dataset in (text_dataset, chat_dataset):
        with pytest.raises(ValueError, match="The token_encoding_type must be one of"):
            dataset("/nowhere", token_encoding_type="float32")
        with pytest.raises(ValueError, match="does not contain split val"):
            dataset(str(tmp_path), split="val")
        with pytest.raises(TypeError, match="extra"):
            dataset("/nowhere", extra=1)


def test_a_subclass_may_change_samples(tmp_path: Path) -> None:
    class Doubled(foundry.StreamingTextDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, at: Any) -> Any:
            return 2 * super().__getitem__(at)

    local = write(tmp_path / "a", {"tokens": "ndarray:int32"}, {"tokens": np.arange(3, 7, dtype=np.int32)})
    dataset = Doubled(tokenizer=None, max_seq_len=4, local=local, batch_size=1)
    assert [sample.tolist() for sample in dataset] == [[6, 8, 10, 12]]


def test_states_of_packed_data_sets_count_samples(tmp_path: Path) -> None:
    local = write(tmp_path / "a", {"turns": "json"}, *[{"turns": []}] * 40)
    dataset = chat_dataset(local, batch_size=10, packing_ratio=2.5)
    assert dataset.state_dict(4, True)["sample_in_epoch"] == 10


def test_masked_and_encoder_decoder_batches_are_made_in_python(tmp_path: Path) -> None:
    local = write(tmp_path / "a", {"turns": "json"}, *[{"turns": [{"input_ids": [10], "labels": [11]}]}] * 4)
    cfg = {
        "name": "finetuning",
        "num_workers": 0,
        "pin_memory": False,
        "dataset": {"local": local, "max_seq_len": 8, "decoder_only_format": False},
    }
    loader = foundry.build_dataloader(cfg, make_tokenizer(PAD, EOS), 2).dataloader
    assert isinstance(loader, torch.utils.data.DataLoader)
    assert isinstance(loader.dataset, foundry.StreamingFinetuningDataset)
    batches = list(loader)
    assert len(batches) == 2 and batches[0]["labels"].tolist() == [[11, EOS, *[NONE] * 6]] * 2
    for changes, message in (
        ({"order": "stoker"}, "there is no order: stoker then"),
        ({"layout": "pack"}, "there is no layout: pack with stoker's packing or order: stoker then"),
        ({"rank": 1, "world_size": 2}, "there is no rank but that of the launcher then"),
    ):
        with pytest.raises(ValueError, match=f"made in Python, since decoder_only_format is False: {message}"):
            foundry.build_dataloader({**cfg, **changes}, make_tokenizer(PAD, EOS), 2)
    assert foundry.build_dataloader({**cfg, "rank": 0, "world_size": 1}, make_tokenizer(PAD, EOS), 2)


def test_all_names_are_there_and_torch_is_not_imported_for_them() -> None:
    for name in foundry.__all__:
        assert getattr(foundry, name) is not None
        assert not isinstance(getattr(foundry, name), ModuleType), name  # once its module has been imported
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = foundry.nothing
    code = "import sys, stoker.cli, stoker.foundry.migration; sys.exit(bool({'torch', 'omegaconf'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fewer_samples_than_nodes_are_told() -> None:
    check_num_samples(4, 4, 8)
    check_num_samples(4, None, 4)
    with pytest.raises(errors.DatasetTooSmallError, match="num_samples=3 is less than 4, the number of physical nodes"):
        check_num_samples(3, None, 4)
    with pytest.raises(errors.DatasetTooSmallError, match=r"num_samples=3 is less than num_canonical_nodes=4\. Please"):
        check_num_samples(3, 4, 1)
