"""stoker prepare"""

from __future__ import annotations

import argparse
import os
import sys

from stoker.cli.progress import Bar, progress_bar
from stoker.preparation import Counts, Part, prepare


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
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
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="where the shards go")
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
    parser.add_argument("--compression", default="zstd", metavar="C", help="zstd, zstd:LEVEL, none, ...; see the docs")
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
    parser.add_argument("--scratch", metavar="DIR", help="of a URL: where shards wait (default: in the user's cache)")
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
    with progress_bar() as bar:
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
            scratch=arguments.scratch,
            progress=None if bar is None else _Progress(bar),
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
    """Tells documents and tokens beside the bytes."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._counts = Counts()

    def __call__(self, part: Part, counts: Counts, total_bytes: int) -> None:
        self._counts.add(counts)
        told = {"documents": f"{self._counts.samples:,}", "tokens": f"{self._counts.tokens / 1e6:,.1f} M"}
        self._bar.advance(sum(piece.size_bytes for piece in part), total_bytes, told)
