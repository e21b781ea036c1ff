"""The recipe for Spark in docs/preparing.md, run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stoker
from stoker.preparation import sources

pyspark_sql = pytest.importorskip("pyspark.sql")
pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="needs java")

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "preparing.md"


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = pyspark_sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", False).getOrCreate()
    yield session
    session.stop()


def test_the_recipe_writes_the_bytes_that_local_processes_write(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<|endoftext|>": 0, **{f"w{i}": i + 1 for i in range(50)}}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(sources, "_LEAST_PART", 1000)
    lines = [json.dumps({"text": " ".join(f"w{(i * j) % 50}" for j in range(i % 20 + 1))}) for i in range(200)]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines))
    (recipe,) = re.findall(r"```python\n(def on_spark.*?)```", RECIPES.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(recipe, names)
    for out, engine in (("here", "local"), ("there", names["on_spark"])):
        stoker.prepare(tmp_path / "raw.jsonl", tmp_path / out, tmp_path / "tokenizer.json", engine=engine, processes=1)
    assert len(json.loads((tmp_path / "there" / "index.json").read_text())["shards"]) > 5
    here, there = ({p.name: p.read_bytes() for p in (tmp_path / out).iterdir()} for out in ("here", "there"))
    assert here == there
