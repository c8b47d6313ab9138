"""`qwencli serve` under load, in short: scripts/load_server.py for seconds instead of minutes; and what it found."""
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from serving import serving

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "load_server.py"


def test_many_clients_of_all_kinds(tmp_path: Path) -> None:
    """All that the script's table is about, but for memory."""
    options = ["--clients", "40", "--seconds", "5", "--timeout", "2", "--keep", tmp_path, "-np", "3", "--queue", "10"]
    done = subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in "\nall ", "\nsame ", "200: ", "400: ", "all complete, exit status 0":
        assert part in done.stdout


def test_errors_need_no_thread_and_are_no_failures_of_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(log_format="json") as server, httpx.Client(base_url=server.url) as client:
        assert [client.get("/nowhere").status_code, client.delete("/completion").status_code] == [404, 405]
        assert not [thread.name for thread in threading.enumerate() if "AnyIO" in thread.name]
    log = capfd.readouterr().err
    assert "Method Not Allowed" in log
    assert "Traceback" not in log
