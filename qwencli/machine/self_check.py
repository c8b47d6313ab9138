"""Whether the compiled kernels work on this machine: their logits compared with the NumPy backend's.

It runs as a process of its own, `python -m qwencli.machine.self_check`, which an illegal instruction may end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile

import numpy as np

from ..backends.cpu.backend import CPUBackend
from ..backends.kv_cache import KVSequence
from ..backends.numpy.backend import NumpyBackend
from ..backends.protocol import LOGITS, Batch, Segment
from ..errors import QwenError
from ..gguf.file import GGUFFile
from ..hub.places import EMBEDDED
from ..kernels import isa, jit
from ..network.load import load_model
from ..text.tokenizer import Tokenizer

TEXT = "Once upon a time there was a little girl named Lily. She loved to play in the park with her friends."
CHECK_SECONDS = 300


def check_apart(name: str) -> str:
    """Run the kernels of an ISA in a process of their own, which an illegal instruction may end. "ok", or what is wrong with them."""
    command = [sys.executable, *(["-I"] if sys.flags.isolated else []), "-m", __name__]
    env = os.environ | {isa.VARIABLE: name, "QWENCLI_CACHE": str(jit.cache_folder().absolute())}
    try:
        with tempfile.TemporaryDirectory() as empty:  # python -m would import what lies in the current folder
            done = subprocess.run(
                command,
                env=env,
                cwd=empty,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CHECK_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"they could not be run: {error}"
    if done.returncode < 0:
        return f"they ended their process with the signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    try:
        return str(json.loads(done.stdout))
    except ValueError:
        return f"they ended their process with the exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}"


def check() -> str:
    """Compare the compiled kernels' logits with the NumPy backend's: many tokens at once, then one more. "ok", or what is wrong.

    Raises QwenError.
    """
    model = load_model(GGUFFile(EMBEDDED))
    *tokens, last = Tokenizer(model.file).encode(TEXT)
    found = []
    for backend in CPUBackend(model), NumpyBackend(model):
        seq = KVSequence()
        found.append(
            np.concatenate(
                [
                    backend.run([LOGITS], Batch([Segment(seq, step, len(step))]))[LOGITS]
                    for step in (tokens, [last])
                ]
            )
        )
    kernels, numpy = (logits / np.linalg.norm(logits, axis=-1, keepdims=True) for logits in found)
    likeness = float((kernels * numpy).sum(axis=-1).min())  # 1 but for the quantized activations
    return "ok" if likeness > 0.999 else f"they give other logits than NumPy: a cosine of {likeness:.4f}"


if __name__ == "__main__":
    try:
        print(json.dumps(check()))
    except QwenError as failure:
        print(json.dumps(str(failure)))
