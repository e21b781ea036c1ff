"""LLM Foundry's collators: what its specification says, value by value, and its errors."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import stoker.foundry as foundry  # noqa: E402  # after the checks
from foundry_tokenizers import make_tokenizer  # noqa: E402
from stoker.foundry import errors  # noqa: E402

PAD, EOS, NONE = 1, 2, -100
CHAT = [{"input_ids": [20, 21], "labels": [22, 2]}, {"input_ids": [23], "labels": [24, 25]}]
ANSWER = [{"input_ids": [10, 11, 12], "labels": [13, 14]}]


def collate(*turns: Any, width: int = 8, decoder_only: bool = True, side: str = "right", **options: Any) -> Any:
    tokenizer = make_tokenizer(PAD, EOS, side=side)
    collator = foundry.Seq2SeqFinetuningCollator(tokenizer, width, decoder_only, **options)
    return collator([{"turns": each} for each in turns])


def lists(batch: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in batch.items()}


# ---------------------------------------------------------------- sequence ids
@pytest.mark.parametrize(
    ("mode", "token", "ids", "expected"),
    [
        ("eos", 5, [0, 1, 2, 5, 0, 1, 5, 0, 6], [0, 0, 0, 0, 1, 1, 1, 2, 2]),
        ("bos", 5, [0, 1, 2, 5, 0, 1, 5, 0, 6], [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ("eos", 2, [5, 6, 2, 2, 2], [0, 0, 0, 1, 2]),
        ("eos", 2, [2, 2, 5, 6, 2], [0, 1, 2, 2, 2]),
        ("bos", 3, [3, 5, 6, 3, 7], [1, 1, 1, 2, 2]),
        ("bos", 3, [5, 6, 3, 7, 8], [0, 0, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_sequence_ids_number_the_documents_of_a_row(
    mode: str, token: int, ids: list[int], expected: list[int], dtype: Any
) -> None:
    wrapper = foundry.ConcatenatedSequenceCollatorWrapper(lambda x: x, **{f"{mode}_token_id": token})
    found = wrapper.get_sequence_id_from_batch({"input_ids": torch.tensor([ids], dtype=dtype)})
    assert found.tolist() == [expected] and found.dtype == dtype


def test_sequence_ids_need_one_of_eos_and_bos() -> None:
    with pytest.raises(ValueError, match="Must supply a value for either eos_token_id or bos_token_id, but got None"):
        foundry.ConcatenatedSequenceCollatorWrapper(lambda x: x)
    with pytest.raises(ValueError, match=r"Cannot use \*both\* EOS and BOS tokens for detecting sequence boundaries"):
        foundry.ConcatenatedSequenceCollatorWrapper(lambda x: x, 1, 1)


# ---------------------------------------------------------------- decoders
@pytest.mark.parametrize(
    ("prompts", "responses", "labels"),
    [
        ("none", "last", [NONE, NONE, NONE, NONE, NONE, 24, 25, 2]),
        ("all", "all", [20, 21, 22, 2, 23, 24, 25, 2]),
        ("length>=3", "all", [NONE, NONE, 22, 2, NONE, 24, 25, 2]),
        ("LENGTH>=2", "LAST", [20, 21, NONE, NONE, NONE, 24, 25, 2]),
    ],
)
def test_targets_say_which_parts_of_a_conversation_have_loss(prompts: str, responses: str, labels: list[int]) -> None:
    batch = lists(collate(CHAT, target_prompts=prompts, target_responses=responses))
    assert batch["input_ids"] == [[20, 21, 22, 2, 23, 24, 25, 2]] and batch["labels"] == [labels]


def test_rows_are_padded_on_the_tokenizers_side() -> None:
    right = collate(ANSWER)
    assert list(right) == ["input_ids", "labels", "attention_mask", "sequence_id"]
    assert {value.dtype for value in right.values()} == {torch.int64}
    assert isinstance(right, transformers.BatchEncoding)
    assert lists(right) == {
        "input_ids": [[10, 11, 12, 13, 14, 2, 1, 1]],
        "labels": [[NONE, NONE, NONE, 13, 14, 2, NONE, NONE]],
        "attention_mask": [[1, 1, 1, 1, 1, 1, 0, 0]],
        "sequence_id": [[0, 0, 0, 0, 0, 0, -1, -1]],
    }
    assert lists(collate(ANSWER, side="left")) == {
        "input_ids": [[1, 1, 10, 11, 12, 13, 14, 2]],
        "labels": [[NONE, NONE, NONE, NONE, NONE, 13, 14, 2]],
        "attention_mask": [[0, 0, 1, 1, 1, 1, 1, 1]],
        "sequence_id": [[-1, -1, 0, 0, 0, 0, 0, 0]],
    }


def test_a_real_token_that_is_the_padding_keeps_its_label() -> None:
    batch = lists(collate([{"input_ids": [10], "labels": [1, 1]}]))
    assert batch["labels"] == [[NONE, 1, 1, 2, NONE, NONE, NONE, NONE]]
    assert batch["attention_mask"] == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_rows_are_as_wide_as_the_longest_on_request() -> None:
    assert collate(ANSWER, CHAT[1:], pad_to_longest=True)["input_ids"].shape == (2, 6)


def test_from_the_second_batch_on_padding_is_trimmed_to_eights_on_request() -> None:
    for side, begin in (("right", 0), ("left", 24)):
        tokenizer = make_tokenizer(PAD, EOS, side=side)
        collator = foundry.Seq2SeqFinetuningCollator(tokenizer, 32, True, allow_pad_trimming=True)
        first, second = (collator([{"turns": ANSWER}, {"turns": CHAT}]) for _ in range(2))
        assert first["input_ids"].shape == (2, 32) and second["input_ids"].shape == (2, 8)
        assert all(torch.equal(second[key], first[key][:, begin : begin + 8]) for key in first)


def test_what_is_too_long_is_cut_on_the_right_with_one_warning() -> None:
    collator = foundry.Seq2SeqFinetuningCollator(make_tokenizer(PAD, EOS), 4, True)
    with pytest.warns(UserWarning, match=r"Truncating sequence of length=6 to fit max_seq_len=4\. If truncation is a"):
        batch = lists(collator([{"turns": ANSWER}]))
    assert batch["input_ids"] == [[10, 11, 12, 13]] and batch["labels"] == [[NONE, NONE, NONE, 13]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator([{"turns": ANSWER}])


def test_an_example_without_loss_after_it_was_cut_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match=r"Truncating to max_seq_len=3 has removed all loss-generating tokens. Pre-truncation sequence length was "
        "6. This sample should have been filtered out before reaching the collator. If using pre-tokenized streaming "
        "data, this may have resulted from using different ``target_prompts``, ``target_responses``, or "
        "``max_seq_len`` settings when preparing the streaming dataset than what are currently being used.",
    ):
        collate(ANSWER, width=3)


def test_examples_without_turns_of_both_parts_are_errors() -> None:
    with pytest.raises(KeyError, match="Examples returned by dataset do not include required key: labels"):
        collate([{"input_ids": [1]}])
    with pytest.raises(IndexError):
        collate([{"input_ids": [1], "labels": []}])


def test_metadata_is_added_for_each_row() -> None:
    batch = collate(ANSWER, CHAT, batch_metadata={"source": 3})
    assert list(batch)[-1] == "source" and batch["source"].tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"in batch_metadata but are not allowed: labels, decoder_input_ids\.\nYou"):
        collate(ANSWER, batch_metadata={"decoder_input_ids": 1, "labels": 1})


def test_a_tokenizer_without_padding_and_odd_lengths_are_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer(None, EOS)
    with pytest.raises(ValueError, match="requires that the tokenizer has the pad token set, but it is None"):
        foundry.Seq2SeqFinetuningCollator(tokenizer, 8, True)
    assert not caplog.records
    collate(ANSWER, width=9)
    assert "For performance, a max_seq_len as a multiple of 8 is recommended." in caplog.text


# ---------------------------------------------------------------- targets
@pytest.mark.parametrize(
    ("prompts", "responses", "decoder_only", "message"),
    [
        ("all", "last", False, 'encoder_decoder format, you must use target_prompts="none" and target_responses="la'),
        ("none", "x", True, 'target_responses must be either "last" or "all" but target_responses=\'x\''),
        ("length>=x", "all", True, r"rest of the string is not digits \(target_prompts='length>=x'\). To use this"),
        ("length>=0", "all", True, "the target_prompts length cutoff to a negative number cutoff=0. This is not allow"),
        ("some", "all", True, 'must either be "all", "none" or "length>=XX" where "XX" is a positive integer, but tar'),
    ],
)
def test_target_settings_that_nobody_knows_are_told(
    prompts: str, responses: str, decoder_only: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        foundry.validate_target_settings(prompts, responses, decoder_only)


def test_turns_may_be_tensors_and_are_not_changed() -> None:
    turns = [{"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([7])}]
    assert foundry.stitch_turns_decoder_only(turns, "none", "last", 2) == ([5, 6, 7, 2], [NONE, NONE, 7, 2])
    assert foundry.stitch_turns_encoder_decoder(CHAT, 2) == ([20, 21, 22, 2, 23], [24, 25, 2])
    assert CHAT[1]["labels"] == [24, 25]
    with pytest.raises(ValueError, match="target is still None"):
        foundry.stitch_turns_encoder_decoder([])


@pytest.mark.parametrize(
    ("turns", "settings", "is_valid"),
    [
        (ANSWER, ("none", "last"), True),
        ([{"input_ids": [], "labels": [1]}], ("none", "last"), False),
        ([{"input_ids": [1], "labels": []}], ("none", "last"), False),
        ([{"input_ids": [1] * 8, "labels": [1]}], ("none", "last"), False),
        ([{"input_ids": [1] * 8, "labels": [1]}], ("all", "last"), True),
        ([{"input_ids": [1] * 8, "labels": [1]}], ("length>=9", "last"), False),
        ([{"input_ids": [1], "labels": [1]}, {"input_ids": [1] * 8, "labels": [1]}], ("none", "all"), True),
        ([{"input_ids": [1], "labels": [1]}, {"input_ids": [1] * 8, "labels": [1]}], ("none", "last"), False),
    ],
)
def test_examples_without_loss_are_not_valid(turns: Any, settings: tuple[str, str], is_valid: bool) -> None:
    assert foundry.is_valid_ift_example(8, *settings, True, {"turns": turns}) is is_valid


# ---------------------------------------------------------------- encoder-decoder
def test_encoder_decoder_batches_have_contexts_and_targets() -> None:
    batch = collate(CHAT, decoder_only=False, width=6, side="left")
    assert lists(batch) == {
        "input_ids": [[1, 20, 21, 22, 2, 23]],
        "labels": [[24, 25, 2, NONE, NONE, NONE]],
        "attention_mask": [[0, 1, 1, 1, 1, 1]],
        "decoder_input_ids": [[1, 24, 25, 2, 1, 1]],
        "decoder_attention_mask": [[True, True, True, False, False, False]],
    }
    assert list(batch) == ["input_ids", "labels", "attention_mask", "decoder_input_ids", "decoder_attention_mask"]
    assert batch["decoder_attention_mask"].dtype == torch.bool


def test_encoder_decoder_parts_are_cut_before_an_end_with_warnings() -> None:
    with pytest.warns(UserWarning, match="Truncating") as told:
        batch = lists(collate(CHAT, decoder_only=False, width=3))
    assert batch["input_ids"] == [[20, 21, EOS]] and batch["labels"] == [[24, 25, EOS]]
    assert [str(warning.message).split(" to ")[0] for warning in told] == [
        "Truncating TARGET sequence of length=3",
        "Truncating CONTEXT sequence of length=5",
    ]


# ---------------------------------------------------------------- counts
def test_counts_are_lists_of_ints_with_an_entry_for_each_row() -> None:
    count = foundry.get_tokens_per_batch_func()
    tokenizer = make_tokenizer(PAD, EOS)
    base = foundry.Seq2SeqFinetuningCollator(tokenizer, 8, True)
    wrapper = foundry.LossGeneratingTokensCollatorWrapper(base, count)
    batch = wrapper([{"turns": ANSWER}, {"turns": CHAT}])
    assert list(batch)[-2:] == ["total_tokens", "loss_generating_tokens"]
    assert batch["total_tokens"] == [6, 8] and batch["loss_generating_tokens"] == [3, 3]
    assert count(batch) == {"total": 14, "loss_generating": 6}
    other = foundry.LossGeneratingTokensCollatorWrapper(base, lambda row: count(row))
    assert lists(other([{"turns": ANSWER}, {"turns": CHAT}])) == lists(batch)


def test_counts_leave_out_the_first_label_of_each_row() -> None:
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.int64), "labels": torch.tensor([[7, 7, 7, 7], [7, NONE, 7, 7]])}
    assert foundry.get_tokens_per_batch_func()(batch) == {"total": 8, "loss_generating": 5}
    del batch["labels"]
    assert foundry.get_tokens_per_batch_func()(batch) == 8
    wrapped = foundry.LossGeneratingTokensCollatorWrapper(lambda _: batch, foundry.get_tokens_per_batch_func())([])
    assert wrapped["total_tokens"] == wrapped["loss_generating_tokens"] == [4, 4]


def test_counts_of_encoder_decoder_batches_may_include_the_decoders() -> None:
    batch = collate(CHAT, decoder_only=False)
    assert foundry.get_tokens_per_batch_func()(batch) == {"total": 5, "loss_generating": 2}
    assert foundry.get_tokens_per_batch_func(decoder_only=False)(batch) == {"total": 8, "loss_generating": 2}


def test_what_is_no_batch_of_tokens_is_told() -> None:
    for wrong in ([1], {"labels": 1}):
        with pytest.raises(ValueError, match="requires a batch with an attention_mask key or an input_ids key"):
            foundry.get_tokens_per_batch_func()(wrong)
    with pytest.raises(ValueError, match="for encoder decoder requires a batch with a decoder_attention_mask key"):
        foundry.get_tokens_per_batch_func(decoder_only=False)({"input_ids": 1})


def test_a_data_spec_counts_tokens_by_type() -> None:
    spec = foundry.DataSpec([1])
    batch = {"input_ids": torch.ones(1, 4), "labels": torch.ones(1, 4)}
    assert spec.dataloader == [1]
    assert (spec.get_num_tokens_in_batch(batch), spec.get_num_tokens_in_batch(batch, "loss_generating")) == (4, 3)
    with pytest.raises(ValueError, match="Token type x not found"):
        spec.get_num_tokens_in_batch(batch, token_type="x")
    with pytest.raises(ValueError, match="Unexpected return type from get_num_tokens_in_batch: <class 'str'>"):
        foundry.DataSpec([], lambda _: "4").get_num_tokens_in_batch(batch)


def test_a_data_spec_is_composers_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(foundry.get_data_spec([1], {}), foundry.DataSpec)
    core = ModuleType("composer.core")
    core.DataSpec = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "composer", ModuleType("composer"))
    monkeypatch.setitem(sys.modules, "composer.core", core)
    spec = foundry.get_data_spec([1], {})
    assert isinstance(spec, SimpleNamespace) and spec.dataloader == [1]
    assert spec.get_num_tokens_in_batch({"input_ids": torch.ones(1, 4)}) == 4


# ---------------------------------------------------------------- examples
def test_prompt_and_response_are_tokenized_with_one_beginning() -> None:
    tokenizer = make_tokenizer(PAD, EOS, bos=3)
    example = foundry.tokenize_formatted_example({"prompt": "10 11", "response": "12"}, tokenizer)
    (turn,) = example["turns"]
    assert (turn["input_ids"], turn["labels"]) == ([3, 10, 11], [12])
    assert foundry.tokenize_formatted_example({"prompt": "10", "completion": "12"}, tokenizer)["turns"]


def test_conversations_are_written_by_the_chat_template() -> None:
    tokenizer = make_tokenizer(PAD, EOS, bos=3)
    tokenizer.chat_template = "{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
    messages = [{"role": role, "content": text} for role, text in [("user", "10"), ("assistant", "11 12")] * 2]
    example = foundry.tokenize_formatted_example({"messages": messages}, tokenizer)
    assert [(turn["input_ids"], turn["labels"]) for turn in example["turns"]] == [([10], [11, 12])] * 2


def test_a_template_that_refuses_a_conversation_is_told() -> None:
    tokenizer = make_tokenizer(PAD, EOS)
    tokenizer.chat_template = "{{ raise_exception('no tools') }}"
    messages = [{"role": "user", "content": "10"}, {"role": "assistant", "content": "11"}]
    with pytest.raises(errors.ChatTemplateError, match=r"Failed to process sample .* with template .*no tools"):
        foundry.tokenize_formatted_example({"messages": messages}, tokenizer)


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ([1], errors.InvalidExampleTypeError, "Expected example to be a `Mapping`, but found type <class 'list'>"),
        ({"prompt": "x", "answer": "y"}, errors.UnknownExampleTypeError, "Unknown example type"),
        ({"prompt": 1, "response": "y"}, errors.InvalidPromptTypeError, "Expected prompt to be a string, but found <c"),
        ({"prompt": "x", "response": 1}, errors.InvalidResponseTypeError, "Expected response to be a string, but fou"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, errors.InvalidLastChatMessageRoleError, "role: user"),
    ],
)
def test_examples_that_break_a_rule_are_errors_of_the_user(example: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as told:
        foundry.tokenize_formatted_example(example, make_tokenizer(PAD, EOS))
    assert isinstance(told.value, errors.UserError) and told.value.error_attribution == "UserError"


# ---------------------------------------------------------------- errors
ERRORS = [
    (errors.MissingHuggingFaceURLSplitError(), "When using a HuggingFace dataset from a URL, you must set the `split`"),
    (
        errors.NotEnoughDatasetSamplesError("a", "b", 2, 4, 5, 8),
        "Your dataset (name=a, split=b) has 5 samples, but your minimum batch size is 8 because you are running on 4 g",
    ),
    (errors.InvalidExampleTypeError("x"), "Expected example to be a `Mapping`, but found type x"),
    (errors.InvalidMessageTypeError("x"), "Expected message to be an `Iterable`, but found type x"),
    (errors.UnknownExampleTypeError("x"), "Found keys x in dataset. Unknown example type. For prompt and response fin"),
    (errors.NotEnoughChatDataError(), "Chat example must have at least two messages"),
    (errors.ConsecutiveRepeatedChatRolesError("x"), "Conversation roles must alternate but found x repeated consecut"),
    (errors.ChatTemplateError("t", [1], "i"), "Failed to process sample [1] with template t. i"),
    (errors.InvalidLastChatMessageRoleError("x", {"a"}), "Invalid last message role: x. Expected one of: {'a'}"),
    (errors.IncorrectMessageKeyQuantityError(["a"]), "Expected 2 keys in message, but found 1"),
    (errors.InvalidRoleError("x", {"b", "a"}), "Expected role to be one of {'a', 'b'} but found: x"),
    (errors.InvalidContentTypeError(int), "Expected content to be a string, but found <class 'int'>"),
    (errors.InvalidPromptTypeError(int), "Expected prompt to be a string, but found <class 'int'>"),
    (errors.InvalidResponseTypeError(int), "Expected response to be a string, but found <class 'int'>"),
    (errors.InvalidPromptResponseKeysError({"a": "b"}, {}), "Expected mapping={'a': 'b'} to have keys \"prompt\" and"),
    (
        errors.InvalidFileExtensionError("a", ["b"]),
        "safe_load is set to True. No data files with safe extensions ['b'] found for dataset at local path a.",
    ),
    (errors.UnableToProcessPromptResponseError({"a": 1}), "Unable to extract prompt/response from {'a': 1}"),
    (errors.InvalidConversationError("x"), "x"),
    (
        errors.FinetuningFileNotFoundError(["a"], ["b"]),
        "Could not find a file with any of the supported extensions: ['b']\nat ['a']",
    ),
    (
        errors.MisconfiguredHfDatasetError("a", "b"),
        "Your dataset (name=a, split=b) is misconfigured. Please check your dataset format and make sure you can load",
    ),
    (errors.MisconfiguredHfDatasetError("a"), "Your dataset (name=a) is misconfigured. Please check your dataset for"),
    (errors.InvalidDatasetError("x"), "Dataset contains no valid samples for training. x"),
    (
        errors.DatasetTooSmallError("x"),
        "Your dataset is too small and produced no complete samples or too few samples. Please provide more data. x",
    ),
    (errors.InputFolderMissingDataError("x"), "No text files were found at x."),
    (errors.InputFolderNotFound("x"), "x not found."),
    (errors.CannotUnicodeDecodeFile("x"), "Text file x contains chars that cannot be utf-8 decoded. Please remove or"),
    (errors.OutputFolderNotEmptyError("x"), "x is not empty. Please remove or empty it and retry."),
]


@pytest.mark.parametrize(("error", "message"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_errors_say_what_llm_foundry_says_and_pickle(error: errors.BaseContextualError, message: str) -> None:
    assert str(error).startswith(message) and error.location is None
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), {**vars(error), "location": None})


@pytest.mark.parametrize("name", ["BaseContextualError", "UserError", "NetworkError", "InternalError"])
def test_base_errors_do_not_pickle(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} is a base class and cannot be pickled."):
        pickle.dumps(getattr(errors, name)("x"))
