"""What ``test_gluon_aot`` compiles: the end-to-end kernel, and the right micro-kernels."""

from gluon_etap import decode, problem
from gluon_kernels import RULES

from ridgeline.testing.gluon_aot import Launch, launch


def launches() -> dict[str, Launch]:
    found = {name: launch(rule.kernel, *rule.arguments(), 0) for name, rule in RULES.items()}
    for heads, dim, dim_v in ((16, 64, 64), (8, 256, 256)):
        arguments, constants = problem((64,), heads, dim, dim_v)
        found[f"etap-{heads}-{dim}"] = launch(decode, *arguments, **constants)
    return found
