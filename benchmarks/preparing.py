"""How fast raw data becomes token shards, and in what memory, beside the tokenizer alone and other tools' scripts.

Question: what does `stoker prepare` cost beyond tokenizing? What do LLM Foundry's and datatrove's scripts take for the
same text? Does memory grow with a source?
Method: text and instructions of ../shared/data as JSON lines, GPT-NeoX tokenizer, all CPUs. The bound is
`tokenizers.encode_batch` on the same texts, in memory already, 1000 at a time, in its own threads; nothing but the call
is timed. The others are timed whole, from their start to the last file, each in a process of its own, in rounds one
after the other: `stoker prepare` as the command; LLM Foundry's `convert_dataset_json --concat_tokens 2048`;
datatrove's `JsonlReader` and `DocumentTokenizer`, a task a CPU, unshuffled. Memory is what a process and its children
have resident at most, looked at ten times a second. For the large sources, the text is repeated: one JSON lines file of
1 GB, and one text file of 500 MB.
Command: `make bench`, or `python benchmarks/preparing.py [--rounds 3]` in its environment.
Result: benchmarks/results/preparing.json; benchmarks/report.py puts it into docs/benchmarks.md, with the reading.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import zstandard
from throughput import DATA, RESULTS, ROOT, machine

SHARED = ROOT.parent / "shared" / "data"
TOKENIZER = SHARED / "tokenizer" / "gpt-neox-20b-olmo" / "tokenizer.json"
RAW = DATA / "raw"
SETS = {"text": "pretrain", "instructions": "finetune"}
CONTENDERS = ("encode_batch", "stoker", "stoker, 1 process", "datatrove", "LLM Foundry")
LARGE = {"1 GB of JSON lines": "large.jsonl", "500 MB of text in one file": "large.txt"}
CPUS = len(os.sched_getaffinity(0))


# ---------------------------------------------------------------- the data
def write_sets() -> None:
    """Writes each set as files of JSON lines, and the large sources, where they are not there."""
    for name, folder in SETS.items():
        (RAW / name).mkdir(parents=True, exist_ok=True)
        for source in sorted((SHARED / folder).glob("*.jsonl.zst")):
            target = RAW / name / source.name.removesuffix(".zst")
            if not target.exists():
                with source.open("rb") as compressed, target.open("wb") as out:
                    zstandard.ZstdDecompressor().copy_stream(compressed, out)
    lines = [line for path in sorted((RAW / "text").iterdir()) for line in path.read_bytes().splitlines(True)]
    for name, size in (("large.jsonl", 1 << 30), ("large.txt", 500 << 20)):
        if (RAW / name).exists():
            continue
        with (RAW / name).open("wb") as out:
            while out.tell() < size:
                for line in lines:
                    out.write(line if name.endswith("jsonl") else json.loads(line)["text"].encode() + b"\n\n")


def texts_of(name: str) -> Iterator[str]:
    for path in sorted((RAW / name).iterdir()):
        with path.open("rb") as file:
            for line in file:
                yield from json.loads(line).values()


# ---------------------------------------------------------------- contenders
def encode_batch(name: str) -> dict[str, Any]:
    """Seconds that the calls take, of the clock and of all threads, and the tokens that come out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    texts = list(texts_of(name))
    tokens = seconds = cpu_s = 0
    for begin in range(0, len(texts), 1000):
        started, cpu_started = time.perf_counter(), time.process_time()
        encodings = tokenizer.encode_batch(texts[begin : begin + 1000], add_special_tokens=False)
        seconds += time.perf_counter() - started
        cpu_s += time.process_time() - cpu_started
        tokens += sum(len(e) for e in encodings)
    return {"seconds": seconds, "cpu_s": cpu_s, "tokens": tokens, "bytes": sum(len(text.encode()) for text in texts)}


def foundry(name: str, out: str) -> None:
    """Their function, with the modules around it that it imports by name only."""
    from transformers import PreTrainedTokenizerFast

    sys.path.insert(0, str(ROOT / "tests" / "peers"))
    importlib.import_module("conftest")  # a stand-in for torchvision, which is gigabytes
    import_alone = importlib.import_module("foundry").import_alone
    data = import_alone("llmfoundry.data.data")
    package = sys.modules["llmfoundry.data"]
    package.ConcatTokensDataset, package.NoConcatDataset = data.ConcatTokensDataset, data.NoConcatDataset
    import_alone("llmfoundry.command_utils.data_prep.convert_dataset_json")
    script = sys.modules["llmfoundry.command_utils.data_prep.convert_dataset_json"]
    folder = Path(out).parent / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token="<|endoftext|>").save_pretrained(str(folder))
    script.convert_dataset_json_from_args(
        str(RAW / name), out, "zstd", 2048, "train", str(folder), None, "<|endoftext|>", False, None
    )


def datatrove(name: str, out: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    pipeline = [
        JsonlReader(str(RAW / name)),
        DocumentTokenizer(out, str(TOKENIZER), eos_token="<|endoftext|>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(pipeline, tasks=CPUS, workers=CPUS, logging_dir=f"{out}.logs").run()


# ---------------------------------------------------------------- one run
def command_of(contender: str, source: str, out: Path) -> list[str]:
    if contender.startswith("stoker"):
        command = [str(Path(sys.executable).with_name("stoker")), "prepare", source, "--out", str(out)]
        processes = 1 if contender.endswith("1 process") else CPUS
        return [*command, "--tokenizer", str(TOKENIZER), "--eos-text", "<|endoftext|>", "--processes", str(processes)]
    return [sys.executable, __file__, "--contender", contender, "--source", Path(source).name, "--out", str(out)]


def run(command: list[str]) -> dict[str, Any]:
    """Runs a command to its end, and looks at its memory meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    most = 0
    while process.poll() is None:
        most = max(most, resident(process))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors.decode()[-2000:]}")
    last = output.decode().strip().splitlines()[-1:]
    told = json.loads(last[0]) if last and last[0].startswith("{") else {}
    return {"seconds": seconds, "cpu_s": cpu_s, "resident_bytes": most, **told}


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children; of pages that they share, each has a part."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    except psutil.NoSuchProcess:  # it has ended meanwhile
        pass
    return total


def measure(contender: str, source: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        return run(command_of(contender, str(RAW / source), Path(folder) / "out"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--source")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.contender == "encode_batch":
        print(json.dumps(encode_batch(options.source)))
    elif options.contender == "LLM Foundry":
        foundry(options.source, options.out)
    elif options.contender == "datatrove":
        datatrove(options.source, options.out)
    if options.contender:
        return
    if not SHARED.is_dir():
        raise SystemExit("there is no ../shared/data, whose text this is measured on: nothing was measured.")
    write_sets()
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name in SETS:
            for contender in CONTENDERS:
                if name == "instructions" and contender in ("datatrove", "LLM Foundry"):
                    continue  # they tokenize no prompts and responses ahead of training
                result = measure(contender, name)
                runs.setdefault(f"{name}/{contender}", []).append(result)
                print(f"round {number}: {name:14} {contender:20} {result}", flush=True)
    for name, file in LARGE.items():
        runs[f"large/{name}"] = [measure("stoker", file)]
        print(f"{name}: {runs[f'large/{name}'][0]}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "preparing.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
