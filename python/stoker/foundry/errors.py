"""LLM Foundry's errors about data: the same names, arguments, attributes and sentences.

All of them pickle, so that they travel from processes of a pool or a torch DataLoader. Those about examples are raised
by `stoker.prepare` too, and are ValueErrors as well.
"""

from __future__ import annotations

from typing import Any

ALLOWED_RESPONSE_KEYS = {"response", "completion"}
ALLOWED_PROMPT_KEYS = {"prompt"}
ALLOWED_MESSAGES_KEYS = {"messages"}

TrainDataLoaderLocation = "TrainDataloader"
EvalDataLoaderLocation = "EvalDataloader"


class BaseContextualError(Exception):
    """What all have in common.

    Attributes:
        location: "TrainDataloader" or "EvalDataloader", where somebody has set it.
        error_attribution: Whose fault it is.
        error: The message that it was made with.
    """

    location: str | None = None
    error_attribution: str | None = None

    def __init__(self, message: str, /, **arguments: Any) -> None:
        """
        Args:
            message: A sentence.
            arguments: Those of the subclass, in the order in which it takes them; they become attributes.
        """
        super().__init__(message)
        self.error = message
        self.serializable_attributes = list(arguments)
        self.__dict__.update(arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self) in _BASES:
            raise NotImplementedError(f"{type(self).__name__} is a base class and cannot be pickled.")
        arguments = tuple(getattr(self, name) for name in self.serializable_attributes)
        return type(self), arguments, {"args": self.args, "location": self.location}


class UserError(BaseContextualError):
    """What was given is wrong."""

    error_attribution = "UserError"


class NetworkError(BaseContextualError):
    """A network fails."""

    error_attribution = "NetworkError"


class InternalError(BaseContextualError):
    """The program is wrong."""

    error_attribution = "InternalError"


_BASES = (BaseContextualError, UserError, NetworkError, InternalError)


# ---------------------------------------------------------------- examples
class BadExampleError(UserError, ValueError):
    """An example that can't be made into tokens."""

    def __init__(self, message: str, /, **arguments: Any) -> None:
        super().__init__(message, **(arguments or {"message": message}))


class InvalidExampleTypeError(BadExampleError):
    """An example is not a mapping."""

    def __init__(self, example_type: str) -> None:
        super().__init__(
            f"Expected example to be a `Mapping`, but found type {example_type}", example_type=example_type
        )


class UnknownExampleTypeError(BadExampleError):
    """The keys of an example are those of no kind."""

    def __init__(self, example_keys: str) -> None:
        super().__init__(
            f"Found keys {example_keys} in dataset. Unknown example type. For prompt and response finetuning, the "
            f"valid prompt keys are {_shown(ALLOWED_PROMPT_KEYS)} and the valid response keys are "
            f"{_shown(ALLOWED_RESPONSE_KEYS)}. For chat finetuning, the allowed keys are "
            f"{_shown(ALLOWED_MESSAGES_KEYS)}",
            example_keys=example_keys,
        )


class InvalidPromptTypeError(BadExampleError):
    """A prompt is not a string."""

    def __init__(self, prompt_type: type) -> None:
        super().__init__(f"Expected prompt to be a string, but found {prompt_type}", prompt_type=prompt_type)


class InvalidResponseTypeError(BadExampleError):
    """A response is not a string."""

    def __init__(self, response_type: type) -> None:
        super().__init__(f"Expected response to be a string, but found {response_type}", response_type=response_type)


class InvalidMessageTypeError(BadExampleError):
    """The messages of a conversation are not a list."""

    def __init__(self, message_type: str) -> None:
        super().__init__(
            f"Expected message to be an `Iterable`, but found type {message_type}", message_type=message_type
        )


class NotEnoughChatDataError(BadExampleError):
    """A conversation has fewer than two messages."""

    def __init__(self) -> None:
        UserError.__init__(self, "Chat example must have at least two messages")


class IncorrectMessageKeyQuantityError(BadExampleError):
    """A message has other keys than role and content."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"Expected 2 keys in message, but found {len(keys)}", keys=keys)


class InvalidRoleError(BadExampleError):
    """A message is of somebody unknown."""

    def __init__(self, role: str, valid_roles: Any) -> None:
        super().__init__(
            f"Expected role to be one of {_shown(valid_roles)} but found: {role}", role=role, valid_roles=valid_roles
        )


class InvalidContentTypeError(BadExampleError):
    """A message's content is neither a string nor a list."""

    def __init__(self, content_type: type) -> None:
        super().__init__(f"Expected content to be a string, but found {content_type}", content_type=content_type)


class InvalidLastChatMessageRoleError(BadExampleError):
    """A conversation does not end with the assistant."""

    def __init__(self, last_role: str, expected_roles: Any) -> None:
        super().__init__(
            f"Invalid last message role: {last_role}. Expected one of: {_shown(expected_roles)}",
            last_role=last_role,
            expected_roles=expected_roles,
        )


class ConsecutiveRepeatedChatRolesError(BadExampleError):
    """Two messages in a row are of the same role."""

    def __init__(self, repeated_role: str) -> None:
        super().__init__(
            f"Conversation roles must alternate but found {repeated_role} repeated consecutively.",
            repeated_role=repeated_role,
        )


class InvalidConversationError(BadExampleError):
    """A chat template does not render the beginning of a conversation as the beginning of its text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ChatTemplateError(BadExampleError):
    """A chat template refuses a conversation."""

    def __init__(self, template: str | None, sample: Any, inner_message: str) -> None:
        super().__init__(
            f"Failed to process sample {sample} with template {template}. {inner_message}",
            template=template,
            sample=sample,
            inner_message=inner_message,
        )


class UnableToProcessPromptResponseError(BadExampleError):
    """There is no example in a row."""

    def __init__(self, input: Any) -> None:
        super().__init__(f"Unable to extract prompt/response from {input}", input=input)


class InvalidPromptResponseKeysError(BadExampleError):
    """A mapping of columns does not say which are prompt and response."""

    def __init__(self, mapping: dict[str, str], example: dict[str, Any]) -> None:
        super().__init__(f'Expected {mapping=} to have keys "prompt" and "response".', mapping=mapping, example=example)


def _shown(values: Any) -> str:
    """A set as Python shows it, the same each time."""
    return (
        f"{{{', '.join(map(repr, sorted(values, key=str)))}}}" if isinstance(values, (set, frozenset)) else f"{values}"
    )


# ---------------------------------------------------------------- data sets
class MissingHuggingFaceURLSplitError(UserError):
    """A data set of Hugging Face has no split."""

    def __init__(self) -> None:
        super().__init__(
            "When using a HuggingFace dataset from a URL, you must set the `split` key in the dataset config."
        )


class NotEnoughDatasetSamplesError(UserError):
    """A data set has fewer samples than a global batch."""

    def __init__(
        self,
        dataset_name: str,
        split: str,
        dataloader_batch_size: int,
        world_size: int,
        full_dataset_size: int,
        minimum_dataset_size: int,
    ) -> None:
        super().__init__(
            f"Your dataset (name={dataset_name}, split={split}) has {full_dataset_size} samples, but your minimum "
            f"batch size is {minimum_dataset_size} because you are running on {world_size} gpus and your per device "
            f"batch size is {dataloader_batch_size}. Please increase the number of samples in your dataset to at least "
            f"{minimum_dataset_size}.",
            dataset_name=dataset_name,
            split=split,
            dataloader_batch_size=dataloader_batch_size,
            world_size=world_size,
            full_dataset_size=full_dataset_size,
            minimum_dataset_size=minimum_dataset_size,
        )


class InvalidFileExtensionError(UserError):
    """With safe_load, a data set has no file of a safe kind."""

    def __init__(self, dataset_name: str, valid_extensions: list[str]) -> None:
        super().__init__(
            f"safe_load is set to True. No data files with safe extensions {valid_extensions} found for dataset at "
            f"local path {dataset_name}.",
            dataset_name=dataset_name,
            valid_extensions=valid_extensions,
        )


class FinetuningFileNotFoundError(UserError):
    """A remote data set has no file of a known kind."""

    def __init__(self, files_searched: list[str], supported_extensions: list[str]) -> None:
        super().__init__(
            f"Could not find a file with any of the supported extensions: {supported_extensions}\nat {files_searched}",
            files_searched=files_searched,
            supported_extensions=supported_extensions,
        )


class MisconfiguredHfDatasetError(UserError):
    """A data set of Hugging Face can't be loaded."""

    def __init__(self, dataset_name: str, split: str | None = None) -> None:
        of = f"name={dataset_name}" if split is None else f"name={dataset_name}, split={split}"
        super().__init__(
            f"Your dataset ({of}) is misconfigured. Please check your dataset format and make sure you can load your "
            "dataset locally.",
            dataset_name=dataset_name,
            split=split,
        )


class InvalidDatasetError(UserError):
    """A data set has no sample to train on."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Dataset contains no valid samples for training. {reason}", reason=reason)


class DatasetTooSmallError(UserError):
    """A data set has fewer samples than it must."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "Your dataset is too small and produced no complete samples or too few samples. Please provide more data. "
            f"{reason}",
            reason=reason,
        )


# ---------------------------------------------------------------- preparing text
class InputFolderMissingDataError(UserError):
    """A folder has no text."""

    def __init__(self, input_folder: str) -> None:
        super().__init__(f"No text files were found at {input_folder}.", input_folder=input_folder)


class InputFolderNotFound(UserError):  # noqa: N818  # LLM Foundry's name
    """There is no such folder."""

    def __init__(self, folder_that_was_not_found: str) -> None:
        super().__init__(f"{folder_that_was_not_found} not found.", folder_that_was_not_found=folder_that_was_not_found)


class CannotUnicodeDecodeFile(UserError):  # noqa: N818  # LLM Foundry's name
    """A file is not UTF-8."""

    def __init__(self, text_file: str) -> None:
        super().__init__(
            f"Text file {text_file} contains chars that cannot be utf-8 decoded. Please remove or replace these chars.",
            text_file=text_file,
        )


class OutputFolderNotEmptyError(UserError):
    """A folder to write to has something in it."""

    def __init__(self, output_folder: str) -> None:
        super().__init__(
            f"{output_folder} is not empty. Please remove or empty it and retry.", output_folder=output_folder
        )
