"""The command `stoker`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from stoker.inspection import inspect
from stoker.merging import merge
from stoker.preparation import Counts, Part, prepare
from stoker.preparation.tokenizer import TextTokenizer
from stoker.totals import count_tokens


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; errors are sentences on stderr.

    Args:
        argv: Arguments without the program's name. Default: of this process.

    Returns:
        The exit status: 0, or 1 after an error.
    """
    parser = argparse.ArgumentParser(prog="stoker", description="Feeds language-model training from MDS token shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_prepare(commands)
    _add_inspect(commands)
    _add_merge(commands)
    _add_index(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"stoker: {error}", file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------- prepare
def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "prepare",
        help="tokenize raw data into shards",
        description="Tokenizes text, prompts and responses, or conversations into a directory of token shards, which a "
        "loader reads as a stream. What was interrupted goes on where it stood.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file or folder of JSON, CSV, Parquet, text or token ids, MDS shards, or hf:NAME",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="T",
        help="a tokenizer.json or .model, a folder with one, tiktoken:NAME, or a name on the hub",
    )
    parser.add_argument("--kind", default="auto", choices=("auto", "text", "finetuning"), help="default: %(default)s")
    parser.add_argument(
        "--columns",
        default={},
        type=_columns,
        metavar="A=B,...",
        help="the sources' columns: text=body, or prompt=instruction,response=output",
    )
    parser.add_argument(
        "--preset", metavar="P", help="rows of a public data set: alpaca, dolly, sharegpt, ...; or MODULE:FUNCTION"
    )
    parser.add_argument("--no-special-tokens", action="store_true", help="of text: not what the tokenizer adds")
    parser.add_argument("--bos-text", metavar="TEXT", help="of text: before each document (default: nothing)")
    parser.add_argument("--eos-text", metavar="TEXT", help="behind each (default: the tokenizer's end of sequence)")
    parser.add_argument("--target-prompts", default="none", metavar="RULE", help="none, all or length>=N")
    parser.add_argument("--target-responses", default="all", choices=("all", "last"), help="default: %(default)s")
    parser.add_argument(
        "--max-seq-len", type=int, metavar="N", help="leave out examples without loss among so many first tokens"
    )
    parser.add_argument(
        "--concat", type=int, metavar="N", help="of text: rows of N tokens, cut from documents one behind the other"
    )
    parser.add_argument("--no-wrap", action="store_true", help="drop what does not fit into such a row")
    parser.add_argument("--foundry-compatible", action="store_true", help="what LLM Foundry reads: int32, and turns")
    parser.add_argument("--compression", default="zstd", metavar="C", help="zstd, zstd:LEVEL or none")
    parser.add_argument("--on-error", default="raise", choices=("raise", "skip"), help="default: %(default)s")
    parser.add_argument(
        "--mix",
        type=_shares,
        metavar="A=X,...",
        help="mix the sources by these shares of tokens; SOURCE may be NAME=PATH",
    )
    parser.add_argument(
        "--mix-tokens", metavar="N", help="of the mixture, such as 10b (default: as many as there can be)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of its order (default: %(default)s)")
    parser.add_argument("--engine", default="local", choices=("local", "ray"), help="default: %(default)s")
    parser.add_argument("--processes", type=int, metavar="N", help="default: the CPUs that there are")
    parser.add_argument(
        "--share",
        type=_share,
        metavar="I/K",
        help="write every K-th part only, from the I-th on (from 0); see the docs",
    )
    parser.add_argument(
        "--token-dtype", metavar="D", help="integer type of .bin files without a header (default: uint16)"
    )
    parser.add_argument("--subset", metavar="S", help="of data sets of Hugging Face")
    parser.add_argument("--split", metavar="S", help="of data sets of Hugging Face (default: train)")
    parser.add_argument("--overwrite", action="store_true", help="remove the data set that DIR holds")
    parser.set_defaults(run=_prepare)


def _columns(text: str) -> dict[str, str]:
    columns = {}
    for pair in text.split(","):
        key, separator, value = pair.partition("=")
        if not (key and separator and value):
            raise argparse.ArgumentTypeError(f"{pair!r} is not NAME=COLUMN")
        columns[key] = value
    return columns


def _shares(text: str) -> dict[str, float]:
    try:
        return {name: float(share) for name, share in _columns(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER,...") from None


def _share(text: str) -> tuple[int, int]:
    index, separator, num_shares = text.partition("/")
    if not (separator and index.isdecimal() and num_shares.isdecimal() and int(index) < int(num_shares)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/K, with I from 0 to K - 1")
    return int(index), int(num_shares)


def _prepare(arguments: argparse.Namespace) -> None:
    if arguments.preset and ":" in arguments.preset:
        sys.path.insert(0, os.getcwd())  # where the user's function is likely to be, as with `python -m`
    with _progress() as progress:
        counts = prepare(
            arguments.sources,
            arguments.out,
            arguments.tokenizer,
            kind=arguments.kind,
            columns=arguments.columns,
            preset=arguments.preset,
            add_special_tokens=not arguments.no_special_tokens,
            bos_text=arguments.bos_text,
            eos_text=arguments.eos_text,
            target_prompts=arguments.target_prompts,
            target_responses=arguments.target_responses,
            max_seq_len=arguments.max_seq_len,
            concat=arguments.concat,
            wrap=not arguments.no_wrap,
            foundry_compatible=arguments.foundry_compatible,
            compression=None if arguments.compression == "none" else arguments.compression,
            on_error=arguments.on_error,
            mix=arguments.mix,
            mix_tokens=arguments.mix_tokens,
            seed=arguments.seed,
            engine=arguments.engine,
            processes=arguments.processes,
            share=arguments.share,
            overwrite=arguments.overwrite,
            progress=progress,
            token_dtype=arguments.token_dtype,
            subset=arguments.subset,
            split=arguments.split,
        )
    print(
        f"{arguments.out}: {counts.samples:,} samples, {counts.tokens:,} tokens, {counts.loss_tokens:,} of them with "
        "loss"
    )
    if arguments.share:
        print("When all shares are written, the same command without --share makes the whole of them.")
    for name, (samples, tokens) in counts.mixed.items():
        print(
            f"  {tokens / sum(n for _, n in counts.mixed.values()):6.1%} {name}: {samples:,} samples, {tokens:,} tokens"
        )
    for reason, number in sorted(counts.bad.items()):
        print(f"left out: {number:,} rows, {reason}")
    for shown in counts.shown:
        print(f"  {shown}")


class _Progress:
    """A bar of what is read, with documents, tokens, speed and the time that is left."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._counts = Counts()

    def __call__(self, part: Part, counts: Counts, total_bytes: int) -> None:
        self._counts.add(counts)
        self._bar.update(
            self._task,
            total=total_bytes,
            advance=sum(piece.size_bytes for piece in part),
            documents=f"{self._counts.samples:,}",
            tokens=f"{self._counts.tokens / 1e6:,.1f} M",
        )


@contextlib.contextmanager
def _progress() -> Iterator[_Progress | None]:
    """Nothing where nobody looks, or rich is not installed."""
    try:
        from rich import progress as rich
        from rich.console import Console
    except ModuleNotFoundError:
        yield None
        return
    columns = (
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TextColumn("{task.fields[documents]} documents"),
        rich.TextColumn("{task.fields[tokens]} tokens"),
        rich.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with rich.Progress(*columns, disable=not console.is_terminal, console=console) as bar:
        yield _Progress(bar, bar.add_task("", total=None, documents="0", tokens="0"))


# ---------------------------------------------------------------- inspect
def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what a directory of shards holds",
        description="Shows counts, lengths, columns, compression, tokenizer and the first samples of a directory of "
        "token shards, and compares its files with the hashes in its index.",
    )
    parser.add_argument("directory", metavar="DIR", help="a directory with index.json")
    parser.add_argument("--tokenizer", metavar="T", help="decode the first samples with it")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="how many of them (default: %(default)s)")
    parser.add_argument("--no-hashes", action="store_true", help="read no more than heads and first samples")
    parser.add_argument("--bytes-dtype", default="int64", help="of `bytes` columns (default: %(default)s)")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    tokenizer = TextTokenizer(arguments.tokenizer) if arguments.tokenizer else None
    found = inspect(
        arguments.directory,
        bytes_dtype=arguments.bytes_dtype,
        examples=arguments.samples,
        check_hashes=not arguments.no_hashes,
    )
    if tokenizer and found.tokenizer and tokenizer.sha256 != found.tokenizer.sha256:
        raise ValueError(f"{arguments.directory} was made with another tokenizer than {arguments.tokenizer}.")
    shortest, median, mean, longest = found.lengths
    loss = "" if found.loss_tokens is None else f", {found.loss_tokens / found.tokens:.1%} with loss"
    print(f"{arguments.directory}: {found.kind}")
    print(f"  samples      {found.samples:,} in {found.shards:,} shards")
    print(f"  tokens       {found.tokens:,}{loss}")
    print(f"  a sample     {shortest:,} to {longest:,} tokens, median {median:,.0f}, mean {mean:,.1f}")
    print(f"  columns      {', '.join(f'{name} {encoding}' for name, encoding in found.columns.items())}")
    print(f"  files        {found.file_bytes:,} bytes, {found.raw_bytes:,} uncompressed ({found.compression or 'raw'})")
    print(
        f"  hashes       {f'{found.num_hashed:,} files are what the index says' if found.num_hashed else 'not checked'}"
    )
    if found.tokenizer:
        print(f"  tokenizer    vocabulary of {found.tokenizer.vocab_size:,}, sha256 {found.tokenizer.sha256[:16]}")
    print()
    most = max(count for *_, count in found.histogram)
    for begin, end, count in found.histogram:
        print(f"  {begin:>9,} to {end:>9,}  {'#' * round(40 * count / most):<40} {count:,}")
    for number, sample in enumerate(found.examples):
        tokens = sample["tokens"].tolist()
        most_shown = 200 if tokenizer else 20
        shown = repr(tokenizer.decode(tokens[:most_shown])) if tokenizer else str(tokens[:most_shown])
        more = " ..." if len(tokens) > most_shown else ""
        print(f"\nsample {number}, {len(tokens):,} tokens: {shown}{more}")


# ---------------------------------------------------------------- merge
def _add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "merge",
        help="join the data sets below a directory",
        description="Writes an index.json of all shards in the directories below DIR, in the order of their names. No "
        "shard is read or moved.",
    )
    parser.add_argument("directory", metavar="DIR", help="holds directories with index.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the index that DIR has")
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    print(f"{arguments.directory}: {merge(arguments.directory, overwrite=arguments.overwrite):,} shards")


# ---------------------------------------------------------------- index
def _add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "index",
        help="count the tokens of shards whose index does not tell",
        description="Counts tokens from the heads of shards, and loss tokens from their labels if they have any, and "
        "writes them to stoker.json beside index.json, so that layouts concat and pack can tell how long an epoch is. "
        "To be run once a data set.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a directory with index.json")
    parser.add_argument(
        "--bytes-dtype", default="int64", help="integer type of `bytes` token columns (default: %(default)s)"
    )
    parser.add_argument("--labels-dtype", help="the same of `bytes` labels (default: as --bytes-dtype)")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> None:
    for directory in arguments.directories:
        totals = count_tokens(directory, bytes_dtype=arguments.bytes_dtype, labels_dtype=arguments.labels_dtype)
        print(f"{directory}: {sum(totals.tokens):,} tokens in {len(totals.tokens):,} shards")
