"""From raw data to token shards: parts are tokenized one by one, in any process, and put together in their order.

The scratch of the destination (`OUT/.parts` of a local one) holds the plan (plan.json) and a directory of shards for
each part that is done, beside what attempts that were killed have left; at the end the shards move to the destination,
and index.json is written. A part is done when its directory is there, and the whole when the index is: whoever is
killed in between goes on there. What comes out does not depend on who does which part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stoker.options import check_index
from stoker.preparation.assembly import Assembly
from stoker.preparation.destination import Destination, check_apart, open_destination
from stoker.preparation.engines import Engine, find_engine
from stoker.preparation.examples import Targets
from stoker.preparation.job import Job
from stoker.preparation.kinds import check_first_rows, check_tokenizers, find_kind
from stoker.preparation.mixing import name_sources
from stoker.preparation.part_writer import Counts
from stoker.preparation.plan import begin, is_finished, lock_scratch, make_plan
from stoker.preparation.rules import Rules, end_of, today
from stoker.preparation.sources import Part, Reading, find_parts
from stoker.preparation.tokenizer import TextTokenizer
from stoker.units import parse_count

Progress = Callable[[Part, Counts, int], None]


def prepare(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    *,
    kind: str = "auto",
    columns: Mapping[str, str] | None = None,
    preset: str | None = None,
    add_special_tokens: bool = True,
    bos_text: str | None = None,
    eos_text: str | None = None,
    target_prompts: str = "none",
    target_responses: str = "all",
    max_seq_len: int | None = None,
    concat: int | None = None,
    wrap: bool = True,
    foundry_compatible: bool = False,
    compression: str | None = "zstd",
    on_error: str = "raise",
    mix: Mapping[str, float] | None = None,
    mix_tokens: int | str | None = None,
    seed: int = 0,
    engine: str | Engine = "local",
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    overwrite: bool = False,
    scratch: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    token_dtype: str | None = None,
    subset: str | None = None,
    split: str | None = None,
) -> Counts:
    """Tokenizes raw data into a directory of token shards, which a loader reads as a stream.

    The output depends on the sources and the arguments, but not on the engine or the number of processes. A run that
    was interrupted, in any way, goes on where it stood; one that is finished is left alone.

    Args:
        sources: Files and folders: JSON (an object a line, or an array), CSV and text (a document a file), all three
            also as .zst or .gz; Parquet; data sets of MDS shards; token ids as .npy, as .bin of nanoGPT or llm.c, and
            as .bin and .idx of Megatron-LM; data sets of Hugging Face, in a folder of `save_to_disk`, or by name as
            hf:NAME.
        out: A directory, empty or absent, or one of an earlier run with the same sources and arguments; or its URL,
            such as "s3://bucket/data": shards are uploaded as they are finished, the index last.
        tokenizer: A tokenizer.json, a model of SentencePiece, a folder with one, tiktoken:NAME, or a name on the
            Hugging Face hub.
        kind: "text": one sample a document, column `text` or `content`. "finetuning": `messages`, `turns`, or `prompt`
            and `response` or `completion`; loss on what is answered; and rows of text, with loss on every token.
            "auto": finetuning, where the first row of any source is that, else text. Rows may also hold token ids:
            `tokens`, or `input_ids`, with `labels` that are -100 where there is no loss; they are taken as they are.
        columns: Columns of the sources by what they are, such as {"prompt": "instruction", "response": "output"} or
            {"text": "body"}.
        preset: What makes examples of the rows of a common public data set: "alpaca", "dolly", "p3", "flan",
            "sharegpt", "orca", "messages", "gsm8k", "stackmathqa", "metamath"; the name of such a data set on the
            Hugging Face hub; or a function of the user's as "MODULE:FUNCTION", from the columns of a row to `prompt`
            and `response`, or `messages`. What a function does is not part of what tells two preparations apart.
        add_special_tokens: Of text: the tokens that the tokenizer puts around a document.
        bos_text, eos_text: Of text: what stands before and behind each document. Default: nothing, and the tokenizer's
            end-of-sequence token, if it has one. "" for the end: nothing. Around token ids stands only what is given.
        target_prompts: Which prompts have loss: "none", "all" or "length>=N".
        target_responses: Which answers of a conversation have loss: "all" or "last".
        max_seq_len: Of finetuning: examples without loss among so many first tokens are left out. Nothing is cut.
        concat: Of text: instead of documents rows of so many tokens, cut from all documents one behind the other, as
            LLM Foundry's scripts make them with --concat_tokens. The loader's layout `concat` cuts documents itself,
            for any seq_len.
        wrap: False: what does not fit into a row of `concat` is dropped, and the next document begins a new one.
        foundry_compatible: What LLM Foundry's scripts write and its loaders read: `tokens` in int32; of finetuning
            data `turns`, JSON of prompts and answers as token ids, which are put together when they are read. stoker
            reads those with a `tokenizer`.
        compression: Of the shards: "zstd", "zstd:LEVEL" or None; or another one that `MDSWriter` knows, such as "gz",
            whose shards a loader must expand to files before it reads them.
        on_error: "raise" ends at the first bad row, and says where it is; "skip" leaves bad rows out and counts them, a
            file that is cut or damaged as one.
            Empty texts, and examples with nothing that has loss, are left out and counted in any case.
        mix: Shares of the tokens by the names of the sources, such as {"web": 0.7, "code": 0.3}; their sum does not
            matter. The sources become one shuffled data set, in the order of a loader, of as many tokens as all of them
            can pay for: one is used whole, and no sample twice. A source is named NAME=PATH, several of one name are
            one; or by the last part of its path, of a file without suffixes. With `concat`, rows are cut afterwards.
        mix_tokens: Tokens of the mixture, such as "10b". Default: as many as there can be.
        seed: Of the order of the mixture. 0 to 2^64 - 1.
        engine: What tokenizes: "local", processes of this machine; "ray", those of a Ray cluster, which must all see
            the sources, the tokenizer and `out` at the same paths; or a generator function of a `Job` and the numbers
            of parts to write, which has Job.write_part(number) called for each, anywhere, and yields the number then.
        processes: That tokenize. Default: as many as this process may use CPUs, or Ray has.
        share: (i, k): write only every k-th part, from the i-th on, and leave the rest to others; when they all have
            ended, a run without it makes the whole of what they wrote.
        overwrite: Remove the data set that `out` holds, or the beginning of one, and begin anew.
        scratch: Of an output at a URL: a local directory where shards wait until they are uploaded; all who write must
            see it. Default: one in the user's cache.
        storage_options: Of an output at a URL, see docs/remote.md.
        progress: Called with each part that is done, what became of its rows, and the bytes of all parts.
        token_dtype: Integer type of .bin files without a header, where it is not uint16; of `bytes` columns of MDS
            shards, where it is not int64.
        subset, split: Of data sets of Hugging Face. Default: the only subset, and "train".

    Returns:
        What became of all rows, or of those of the share.

    Raises:
        FileNotFoundError: A source or the tokenizer is not there.
        FileExistsError: `out` holds something else.
        BadRowError, BadExampleError: A row is bad; the message says where and why. Both are ValueErrors.
        ValueError: An argument breaks its rule, a source is of no known format, or its token ids are of another
            tokenizer.
        ModuleNotFoundError: A package is missing; the message says which.
        OSError: Something can't be read or written.
    """
    if kind not in ("auto", "text", "finetuning"):
        raise ValueError(f"kind is {kind!r}: it must be 'auto', 'text' or 'finetuning'.")
    run = find_engine(engine, processes)
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    by_source = {"": paths} if mix is None else name_sources(paths, mix)
    all_paths = [os.fspath(path) for of_source in by_source.values() for path in of_source]
    _check_once(all_paths)
    check_apart(all_paths, out)
    text_tokenizer = TextTokenizer(tokenizer)
    reading = Reading(text_tokenizer.eos_token_id, text_tokenizer.vocab_size, token_dtype, subset, split)
    parts_of = {
        name: [_absolute(part) for part in find_parts(of_source, reading, skips_broken=on_error == "skip")]
        for name, of_source in by_source.items()
    }
    parts = [part for of_source in parts_of.values() for part in of_source]
    check_apart({piece.path for part in parts for piece in part}, out)
    check_tokenizers(parts, text_tokenizer)
    if kind == "auto":
        kind = "finetuning" if preset is not None else find_kind(parts, all_paths, columns)
    elif columns:
        check_first_rows(parts, all_paths, columns)
    rules = Rules(
        tokenizer=_absolute_path(os.fspath(tokenizer)),
        kind=kind,
        columns=tuple((columns or {}).items()),
        preset=preset,
        add_special_tokens=add_special_tokens,
        bos_text=bos_text,
        eos_text=eos_text,
        targets=Targets(target_prompts, target_responses),
        max_seq_len=max_seq_len,
        concat=None if concat is None else check_index("concat", concat, 1, 1 << 31),
        wrap=wrap,
        foundry_compatible=foundry_compatible,
        compression=compression,
        on_error=on_error,
        mix=tuple(sorted(mix.items())) if mix else (),
        mix_tokens=None if mix_tokens is None else check_index("mix_tokens", parse_count(mix_tokens), 1, 1 << 62),
        seed=check_index("seed", seed, 0, (1 << 64) - 1),
        date=today() if text_tokenizer.chat_template.is_dated else None,
    )
    if rules.mix_tokens is not None and not rules.mix:
        raise ValueError(f"mix_tokens={mix_tokens!r} is for a mix: give the sources shares.")
    if rules.concat:
        _check_concat(rules, text_tokenizer)
    numbers = _check_share(share, len(parts), overwrite=overwrite)
    plan = make_plan(rules, reading, parts_of, text_tokenizer)
    with contextlib.closing(open_destination(out, scratch, storage_options)) as destination:
        begun = begin(destination, plan, overwrite=overwrite)
        if begun is None:
            return _counts_of_finished(destination)
        job = Job(replace(rules, date=begun["rules"]["date"]), parts, destination.scratch, text_tokenizer.digest)
        assembly = None if share else Assembly(job, begun, destination)
        try:
            with lock_scratch(destination.scratch):
                counts = _write_parts(job, run, numbers, progress, assembly)
            if assembly is None:
                return counts
            if not counts.samples:
                destination.remove()
                raise ValueError(_why_there_is_nothing(counts))
            return assembly.finish(counts)
        except OSError:
            if not is_finished(destination, begun):
                raise
            shutil.rmtree(destination.scratch, ignore_errors=True)  # another run was quicker, and has removed it before
            return _counts_of_finished(destination)


def _check_once(sources: Sequence[str]) -> None:
    """
    Raises:
        ValueError: A source is given twice.
    """
    seen = set()
    for source in sources:
        path = os.path.realpath(source)
        if path in seen:
            raise ValueError(f"{source} is among the sources twice: leave one out.")
        seen.add(path)


def _why_there_is_nothing(counts: Counts) -> str:
    if not counts.bad:
        return "the sources have no row."
    reasons = ", ".join(f"{reason}: {number}" for reason, number in sorted(counts.bad.items()))
    return f"nothing is left of the sources: all rows were left out ({reasons}), the first: {counts.shown[0]}"


def _absolute(part: Part) -> Part:
    """Paths that mean the same to all processes."""
    return tuple(replace(piece, path=_absolute_path(piece.path)) for piece in part)


def _absolute_path(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path  # else it is a name


def _check_share(share: tuple[int, int] | None, num_parts: int, *, overwrite: bool) -> range:
    """The numbers of the parts to write.

    Raises:
        ValueError: There is no such share, or it would remove those of others.
    """
    if share is None:
        return range(num_parts)
    index, num_shares = share
    check_index("the number of shares", num_shares, 1, 1 << 20)
    check_index("the share", index, 0, num_shares - 1)
    if overwrite:
        raise ValueError("overwrite is not for a share: it would remove what others write.")
    return range(index, num_parts, num_shares)


def _check_concat(rules: Rules, tokenizer: TextTokenizer) -> None:
    """What is concatenated must be told apart afterwards."""
    if rules.kind != "text":
        raise ValueError(f"concat={rules.concat} is for text: finetuning data is packed by the loader.")
    around = (tokenizer.before or tokenizer.behind) if rules.add_special_tokens else []
    if not (around or rules.bos_text or end_of(rules, tokenizer)):
        raise ValueError(
            "This tokenizer does not insert an EOS nor BOS token. Concatenating with this tokenizer will result in "
            "sequences being attached without a separating token. Please use another tokenizer, such as "
            "facebook/opt-125m, or specify EOS/BOS text with e.g. eos_text='<|endoftext|>'."
        )


# ---------------------------------------------------------------- the parts
def _write_parts(
    job: Job, engine: Engine, numbers: Sequence[int], progress: Progress | None, assembly: Assembly | None
) -> Counts:
    """Writes those of some parts that are not there yet. Returns the counts of all of them, in their order."""
    missing = []
    total_bytes = sum(piece.size_bytes for number in numbers for piece in job.parts[number])
    for number in numbers:
        if (known := job.find_counts(number)) is None:
            missing.append(number)
        elif progress is not None:
            progress(job.parts[number], known, total_bytes)
    if missing:
        with contextlib.closing(engine(job, missing)) as written:
            for number in written:
                if progress is not None:
                    progress(job.parts[number], job.counts_of(number), total_bytes)
                if assembly is not None:
                    assembly.advance()
    total = Counts()
    for number in numbers:
        total.add(job.counts_of(number))
    return total


def _counts_of_finished(destination: Destination) -> Counts:
    index = destination.read_index()
    assert index is not None
    return Counts(**index["prepared"]["counts"])
