"""Requests of forks, whose parent has used obstore: made by a process of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import file_server
from stoker import store_helper, stores
from stoker.stores import StoreError, open_store

pytest.importorskip("obstore")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a directory, in a process that takes itself for a fork."""
    monkeypatch.setattr(stores, "_USED_IN", {os.getppid()})
    store_helper._helper.cache_clear()
    (tmp_path / "data").write_bytes(bytes(range(100)))
    with file_server(tmp_path) as address:
        yield address
    hang_up(store_helper._helper(os.getpid()))
    store_helper._helper.cache_clear()


def hang_up(helper: store_helper._Helper) -> int:
    """As the kernel does when we end."""
    with socket.socket(fileno=os.dup(helper._connection.fileno())) as end, contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    return helper._process.wait(timeout=60)


def test_a_helper_answers_as_the_store_does(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, store_helper.HelperStore)
    assert store.stat("data").size_bytes == 100
    assert store.read("data").data == bytes(range(100))
    part = store.read("data", 5, 9)
    assert (part.data, part.object_bytes) == (bytes(range(5, 9)), 100)
    with pytest.raises(FileNotFoundError, match=r"there is no .*/other"):
        store.read("other")


def test_a_helper_that_ends_is_an_error_and_the_next_request_starts_another(url: str) -> None:
    store = open_store(url)
    assert store.stat("data").size_bytes == 100
    helper = store_helper._helper(os.getpid())
    os.kill(helper._process.pid, signal.SIGKILL)
    helper._thread.join()
    helper._process.wait()
    with pytest.raises(StoreError, match="the process that makes requests has ended"):
        helper.ask(None)
    assert store.stat("data").size_bytes == 100


def test_a_helper_ends_with_who_asks(url: str) -> None:
    store = open_store(url)
    store.stat("data")
    assert hang_up(store_helper._helper(os.getpid())) == 0
