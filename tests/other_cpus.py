"""x86 CPUs that this machine may not have, for tests to pretend that they run on one.

`QWENCLI_TEST_CPU=haswell pytest` does it for a whole run, in the test process and, through `other_cpu_site/sitecustomize.py`, in every
Python process that a test starts.
"""

import os
import sys
from pathlib import Path

from qwencli.kernels import isa

VARIABLE = "QWENCLI_TEST_CPU"
SITE = str(Path(__file__).with_name("other_cpu_site"))

V2 = {"sse4.2", "ssse3", "popcnt"}
V3 = V2 | {"avx", "avx2", "fma", "f16c", "bmi2"}
V4 = V3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}
"""What x86-64-v2, -v3 and -v4 have, by LLVM's names, as far as kernels make a difference of it."""
CPUS = {
    "nehalem": V2,
    "ivybridge": V2 | {"avx", "f16c"},
    "haswell": V3,
    "skylake-avx512": V4,
    "alderlake": V3 | {"avxvnni"},
    "icelake": V4 | {"avx512vnni"},
    "zen4": V4 | {"avx512vnni", "avx512bf16"},
    "zen5": V4 | {"avx512vnni", "avx512bf16", "avxvnni"},
}


def pretend_as_told() -> None:
    """Take this machine's CPU for the one that the environment names, if it names one, here and in the processes that are started.

    A CPU with AVX-512 but without AVX-VNNI runs the kernels for `avxvnni` all the same: they are compiled for the CPU itself, and LLVM
    then encodes the same instructions as AVX-512 has them.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return
    features = frozenset(CPUS[name])
    if "avxvnni" in features - isa.cpu_features() and isa.named("avx512vnni") in isa.available():
        isa.ISAS = tuple(one._replace(cpu="") if one.name == "avxvnni" else one for one in isa.ISAS)
    isa.cpu_features = lambda: features
    if SITE not in sys.path:  # some tests pass sys.path on, others the environment
        sys.path.insert(0, SITE)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SITE, os.environ.get("PYTHONPATH")]))
