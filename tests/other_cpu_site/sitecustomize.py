"""Python imports this when it starts, in the processes that a test run with QWENCLI_TEST_CPU starts."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import other_cpus

other_cpus.pretend_as_told()
