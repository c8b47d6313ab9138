"""Ask llama.cpp's server how it embeds and ranks, and write its answers to tests/oracles/embeddings.json.

    python scripts/make_embedding_oracles.py path/to/llama-server

The models are the embedded demo with other metadata (tests/embedding_models.py), so that the tests can write them again. Vectors come from
/embedding as they are (embd_normalize -1), scores from /rerank.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from embedding_models import DOCUMENTS, EMBEDDING, QUERY, RANKING, TEXTS, Variant, write_variant  # noqa: E402

DEMO = ROOT / "qwencli" / "data" / "demo-q4_k_m.gguf"
PORT = 8973


def ask(path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data)) as answer:
        return json.load(answer)


def answers(server: str, variant: Variant, ranks: bool, folder: Path) -> Any:
    """What the server says of all texts."""
    model = write_variant(DEMO, folder / "model.gguf", variant)
    command = [
        server,
        "-m",
        str(model),
        "--port",
        str(PORT),
        "-c",
        "2048",
        "-ub",
        "512",
        "-t",
        "2",
        "-np",
        "1",
    ]
    command += [
        "--no-repack"
    ]  # without it, builds by some compilers crash on CPUs with AMX: see CONTRIBUTING.md
    command += ["--pooling", variant.pooling] if variant.pooling else []
    command += ["--reranking"] if ranks else ["--embeddings"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                try:
                    ask("/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            if ranks:
                found = ask("/rerank", {"query": QUERY, "documents": DOCUMENTS})
                scores = {each["index"]: each["relevance_score"] for each in found["results"]}
                return {
                    "scores": [scores[i] for i in range(len(DOCUMENTS))],
                    "n_tokens": found["usage"]["prompt_tokens"],
                }
            vectors = [
                ask("/embedding", {"content": text, "embd_normalize": -1})[0]["embedding"] for text in TEXTS
            ]
            if len(vectors[-1]) > 1:  # a vector a token: some say it
                return [[len(v), v[0], v[len(v) // 2], v[-1]] for v in vectors]
            return [v[0] for v in vectors]
        finally:
            process.terminate()


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    [server] = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            kind: {
                name: rounded(answers(server, variant, kind == "ranking", Path(folder)))
                for name, variant in variants.items()
            }
            for kind, variants in (("embedding", EMBEDDING), ("ranking", RANKING))
        }
    (ROOT / "tests" / "oracles" / "embeddings.json").write_text(
        json.dumps(found, indent=None, separators=(",", ":")) + "\n"
    )


if __name__ == "__main__":
    main()
