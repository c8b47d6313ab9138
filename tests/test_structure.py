"""Who may import whom, and that things are added in one place: the design's rules, held by reading the source."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import naive
import numpy as np
import pytest
import tiny_models

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import Batch, Segment
from qwencli.errors import ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.kernels.formats import FORMATS
from qwencli.kernels.isa import ISAS
from qwencli.network import architectures
from qwencli.network.load import known_architectures, load_model

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

PACKAGES = [
    ("errors", "units"),
    ("system", "kernels"),
    ("gguf",),
    ("hub", "network"),
    ("sampling",),
    ("backends",),
    ("engine", "tensors"),
    ("text",),
    ("request",),
    ("llm",),
    ("dialogue", "machine"),
    ("measure",),
    ("drawing",),
    ("server",),
    ("cli",),
    ("__main__",),
]
"""The parts of the package, lowest first. Each imports from itself and from those below; parts in one row never import each other."""
HTTP_APIS = tuple(path.parent.name for path in sorted((ROOT / "qwencli" / "server").glob("*/endpoints.py")))
SERVER = [("options", "sockets"), ("service",), ("http",), ("shared",), HTTP_APIS, ("apis",), ("run",)]
"""The parts of qwencli/server, lowest first, with the same rules. http/ knows no API, and an API, a folder with endpoints, no other."""
USES_KERNELS = {"kernels", "backends", "sampling", "machine"}
SIZES = "kernels.formats"
"""The one file of the kernels that the reader of files imports as well. It imports nothing itself."""
USED_BY = {
    "click": {"cli"},
    "tqdm": {"cli"},
    "prompt_toolkit": {"cli.chat.terminal", "cli.chat.history"},
    "huggingface_hub": {"hub.downloads"},
    "jinja2": {"text.chat.template_child"},
    "tokenizers": {"text.tokenizer"},
    "gguf": {"backends.numpy.memory", "backends.numpy.dequantize", "kernels.quants._grids"},
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "starlette": {"server"},
    "pydantic": {"server"},
    "uvicorn": {"server.run", "server.http.protocol"},
    "llguidance": {"text.grammar.constraints", "text.grammar.child"},
}
"""Packages that only some parts may import, so that the others start fast and stay free of them."""


def source_files() -> dict[str, Path]:
    """Every file of the package by its dotted name within it; kernels/ is installed as qwencli.kernels."""
    files = {}
    for folder, prefix in (ROOT / "qwencli", ""), (ROOT / "kernels", "kernels."):
        for path in folder.rglob("*.py"):
            files[
                (prefix + ".".join(path.relative_to(folder).with_suffix("").parts))
                .removesuffix("__init__")
                .rstrip(".")
            ] = path
    return files


FILES = source_files()


@cache
def imports(name: str) -> tuple[str, ...]:
    """What a file imports, anywhere in it: `.x.y` for parts of qwencli, `x` for other packages."""
    return tuple(imports_in_order(name))


def imports_in_order(name: str) -> Iterator[str]:
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.name
                    if not alias.name.startswith("qwencli")
                    else alias.name.removeprefix("qwencli") or "."
                )
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split(".") if package else []
            assert node.level - 1 <= len(parts), f"{name} imports from outside the package"
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                yield "." + (whole if whole in FILES else base)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            yield (
                node.module.removeprefix("qwencli") if node.module.split(".")[0] == "qwencli" else node.module
            )


BY_NAME = {"network.load": "network.architectures"}
"""Files that import modules of a folder by names that they put together."""


def own(name: str) -> list[str]:
    by_name = [file for file in FILES if file.startswith(f"{BY_NAME[name]}.")] if name in BY_NAME else []
    return [target.lstrip(".") for target in imports(name) if target.startswith(".")] + by_name


def foreign(name: str) -> set[str]:
    return {target.split(".")[0] for target in imports(name) if not target.startswith(".")} - set(
        sys.stdlib_module_names
    )


def part(name: str) -> str:
    return name.split(".")[0]


def layer(name: str) -> int:
    return next((i for i, parts in enumerate(PACKAGES) if part(name) in parts), -1)


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other, directly or by way of others: Tarjan's strongly connected components of more than one."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for target in imported[name]:
            if target not in numbers:
                visit(target)
            if target in stack:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == numbers[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in imported:
        if name not in numbers:
            visit(name)
    return found


def test_the_walk_finds_what_is_there() -> None:
    assert {"", "errors", "network.architectures.qwen3", "cli", "cli.run", "kernels"} <= FILES.keys()
    assert "errors" in own("gguf.file")
    assert "network.architectures.qwen3" in own("network.load")
    assert "backends.numpy.backend" in own("backends.choose")  # inside a function
    assert {"click"} <= foreign("cli.run")
    assert {"tqdm"} <= foreign("cli._bar")


@pytest.mark.parametrize("name", [name for name in FILES if part(name) not in ("", "data")])
def test_imports_go_downwards(name: str) -> None:
    assert layer(name) >= 0, f"give {part(name)} its place in PACKAGES"
    for target in own(name):
        assert target == "" or part(target) == part(name) or layer(target) < layer(name), (
            f"{name} imports {target}, which does not lie below it"
        )
        if part(target) == "kernels":
            assert part(name) in USES_KERNELS or (part(name), target) == ("gguf", SIZES), (
                f"{name} imports {target}"
            )


def test_circles_are_found() -> None:
    assert circles(
        {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"g"}, "g": {"e"}}
    ) == [["b", "c"], ["e", "f", "g"]]


def test_no_files_import_each_other() -> None:
    """Not at run time, not inside a function, not for types."""
    assert (
        circles({name: {target for target in own(name) if target not in ("", name)} for name in FILES}) == []
    )


def test_the_package_has_few_files_of_its_own() -> None:
    """What is not named by its room has to be read to be found."""
    assert len([*(ROOT / "qwencli").glob("*.py")]) <= 10


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("server.")])
def test_imports_within_the_server_go_downwards(name: str) -> None:
    rows = {each: i for i, row in enumerate(SERVER) for each in row}
    own_part = name.split(".")[1]
    assert own_part in rows, f"give {own_part} its place in SERVER"
    for target in own(name):
        other = target.removeprefix("server.").split(".")[0]
        assert not target.startswith("server.") or other == own_part or rows[other] < rows[own_part], (
            f"{name} imports {target}, which does not lie below it"
        )


def test_all_http_apis_are_served() -> None:
    assert {"openai", "llamacpp"} <= set(HTTP_APIS)
    assert set(own("server.apis")) == {f"server.{api}.endpoints" for api in HTTP_APIS}


@pytest.mark.parametrize("name", [name for name in FILES if part(name) == "kernels"])
def test_kernels_import_nothing_else_of_the_package(name: str) -> None:
    assert {part(target) for target in own(name)} <= {"kernels"}


def test_sizes_of_blocks_come_from_a_table_that_imports_nothing() -> None:
    assert own(SIZES) == []
    assert foreign(SIZES) == set()
    folder = ROOT / "kernels" / "quants"
    formats = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
    assert formats == {name.lower() for name in FORMATS}
    for name in formats:
        assert f'BLOCK, BYTES, KIND = sizes("{name.upper()}")\n' in (folder / f"{name}.py").read_text(
            encoding="utf-8"
        )


@pytest.mark.parametrize("name", [name for name in FILES if part(name) == "kernels"])
def test_only_the_files_of_instruction_sets_name_instructions(name: str) -> None:
    """Intrinsics of one kind of processor. Others, such as llvm.fma, exist for all of them."""
    found = re.findall(r"llvm\.(?:x86|aarch64|arm)\b", FILES[name].read_text(encoding="utf-8"))
    assert not found or name.removeprefix("kernels.simd.") in {isa.name for isa in ISAS}


@pytest.mark.parametrize(
    "name", [name for name in FILES if part(name) in ("engine", "llm", "server", "dialogue", "cli")]
)
def test_only_backends_and_what_measures_them_know_names_of_tensors(name: str) -> None:
    found = re.findall(
        r"\b(?:HIDDEN|LOGITS|result_norm|result_output|inp_embd|l_out)\b",
        FILES[name].read_text(encoding="utf-8"),
    )
    assert found == []


def test_the_package_itself_imports_no_more_than_its_errors() -> None:
    assert own("") == ["errors"]
    assert foreign("") == set()


@pytest.mark.parametrize("package", USED_BY)
def test_packages_that_only_some_parts_import(package: str) -> None:
    users = {name for name in FILES if package in foreign(name)}
    allowed = USED_BY[package]
    assert {name for name in users if name not in allowed and part(name) not in allowed} == set()
    assert users


def test_what_is_imported_is_declared() -> None:
    block = re.search(r"^dependencies = \[(.*?)^\]", PYPROJECT, re.M | re.S)
    extras = re.findall(r"^(grammar|server) = \[(.*)\]$", PYPROJECT, re.M)
    assert block
    declared = set(re.findall(r'^\s*"([\w-]+)', block[1], re.M)) | {
        "llvmlite"
    }  # comes with numba, in the version that it needs
    also = {name: set(re.findall(r'"([\w-]+)', packages)) for name, packages in extras}
    assert also.keys() == {"grammar", "server"}
    for name in FILES:
        assert foreign(name) <= declared | also.get({"text": "grammar"}.get(part(name), part(name)), set()), (
            name
        )


def test_all_folders_are_installed() -> None:
    block = re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.M | re.S)
    assert block
    packages = {f"qwencli.{name}".rstrip(".") for name, path in FILES.items() if path.name == "__init__.py"}
    assert set(re.findall(r'"([\w.]+)"', block[1])) == packages


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["info"],
        ["graph"],
        *(["graph", "-o", f"graph{suffix}"] for suffix in (".svg", ".dot", ".json", ".mmd")),
        ["tokenize", "hello"],
        ["detokenize", "1"],
        ["run", "--help"],
    ],
)
def test_quick_commands_import_no_compiler(args: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from qwencli.cli import main
assert main({args!r}) == 0
heavy = {{"numba", "llvmlite", "torch", "jinja2", "qwencli.engine.engine", "gguf.gguf_reader", "tokenizers"}} & sys.modules.keys()
print("imported:", sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    tokenizer = ["tokenizers"] if args[0] == "tokenize" else []
    assert f"imported: {tokenizer}" in done.stderr, done.stderr


# A new architecture


@pytest.fixture
def othernet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that adds the architecture `othernet`, a copy of Qwen3 in a file of its own, to those in qwencli/network/architectures."""
    source = (ROOT / "qwencli" / "network" / "architectures" / "qwen3.py").read_text(encoding="utf-8")
    folder = tmp_path / "architectures"
    folder.mkdir()
    (folder / "othernet.py").write_text(source.replace('"qwen3"', '"othernet"'), encoding="utf-8")
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(folder)])
    yield folder
    sys.modules.pop("qwencli.network.architectures.othernet", None)


def test_a_new_architecture_is_one_file(othernet: Path, tmp_path: Path) -> None:
    assert "othernet" in known_architectures()
    c = tiny_models.config()
    weights = tiny_models.weights(c, 31)
    tiny_models.write_gguf(tmp_path / "m.gguf", c, weights, architecture="othernet")
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    assert model.config.architecture == "othernet"
    tokens = [5, 1, 70, 33]
    found = NumpyBackend(model).run(["result_output"], Batch([Segment(KVSequence(), tokens, 4)]))[
        "result_output"
    ]
    np.testing.assert_allclose(found, naive.forward(c, weights, tokens)["result_output"], rtol=0, atol=2e-5)


def test_an_unknown_architecture_names_those_that_are_known(tmp_path: Path) -> None:
    c = tiny_models.config()
    tiny_models.write_gguf(tmp_path / "m.gguf", c, tiny_models.weights(c, 31), architecture="othernet")
    with pytest.raises(
        ModelError,
        match=r"'othernet' is not supported; known are qwen, qwen2, .*, qwen3vlmoe; how to add one: CONTR",
    ):
        load_model(GGUFFile(tmp_path / "m.gguf"))
