"""The wheel as users get it: built from the source tree, installed into a clean virtual environment."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from mds import write_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(ROOT),
    ]
    subprocess.run([*command, "-C", f"build-dir={out / 'build'}"], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {p.name for p in (ROOT / "python" / "stoker").glob("*.py")}
    assert modules <= {Path(name).name for name in names}
    assert {"stoker/py.typed", "stoker/_core.pyi"} <= set(names)
    assert any(re.fullmatch(r"stoker/_core\..*\.so", name) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith(("stoker/", "stoker-")) for name in names)


def test_the_core_needs_the_systems_libraries_only(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (core,) = (tmp_path / "stoker").glob("_core.*.so")
    dynamic = subprocess.run(["readelf", "-d", core], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert needed <= {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0", *_LOADERS}


_LOADERS = ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")


def test_the_wheel_works_in_a_clean_environment_without_torch(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel], check=True)
    directory = write_dataset(tmp_path, "web", [[60] * 30], compression="zstd")
    code = """
        import sys
        import stoker
        with stoker.DataLoader(stoker.Stream(local=sys.argv[1]), seq_len=10, batch_size=6) as loader:
            batches = list(loader)
        print(stoker.__version__, len(batches), type(batches[0]["input_ids"]).__name__)
        assert "torch" not in sys.modules
    """
    script = tmp_path / "use.py"
    script.write_text(textwrap.dedent(code))
    result = subprocess.run([python, script, directory], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.split() == ["0.1.0", "30", "ndarray"]
    help_text = subprocess.run(
        [tmp_path / "venv" / "bin" / "stoker", "--help"], check=True, capture_output=True, text=True
    )
    assert "index" in help_text.stdout
