"""What an installation holds: every folder of code, as part of the package qwencli alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qwencli
import qwencli.kernels

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_installed() -> None:
    """The list in pyproject.toml is written by hand, since kernels/ is next to qwencli/ but is installed inside it."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-dir"] == {"qwencli.kernels": "kernels"}
    folders = [
        file.parent.relative_to(ROOT).parts
        for top in ("qwencli", "kernels")
        for file in (ROOT / top).rglob("__init__.py")
    ]
    expected = {".".join(parts if parts[0] == "qwencli" else ("qwencli", *parts)) for parts in folders}
    assert set(settings["packages"]) == expected


def test_data_is_installed() -> None:
    data = Path(qwencli.__file__).with_name("data")
    assert {"demo-q4_k_m.gguf", "README.md"} <= {file.name for file in data.iterdir()}
    assert Path(qwencli.__file__).with_name("py.typed").exists()


def test_kernels_are_imported_under_one_name_only() -> None:
    """Another package on PyPI is called kernels; and a second copy of ours would compile everything twice."""
    assert qwencli.kernels.__name__ == "qwencli.kernels"
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: kernels is part of the package qwencli" in done.stderr
