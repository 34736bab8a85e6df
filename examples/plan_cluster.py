"""Choose an attention and a parallelism for a cluster before anything is trained.

A model of DeepSeek-V2's size, with its MLA or with GLA of two or eight latent heads in its place,
is to serve 48 clients at once on eight H100: prompts of 8,192 tokens, outputs of 512. Every variant
at every division into tensor (TP) and data (DP) parallelism is simulated from data-sheet figures;
those that take at most 50 ms a token come first. Prints the ranking with the bytes of cache a token
and device, and what a decode step of the best spends its time on. `ridgeline plan search` is the
same on the command line.
"""

import numpy as np

from ridgeline.roofline import configs, hardware, plan
from ridgeline.roofline.cost import Engine
from ridgeline.roofline.efficiency import Efficiency
from ridgeline.roofline.schedule import Policy
from ridgeline.roofline.search import Target, rank
from ridgeline.roofline.workload import Lengths, Workload

VARIANTS, DEVICES = ("mla", "gla-2", "gla-8"), 8
model, device = configs.find("deepseek-v2"), hardware.find("H100")
prompts, outputs = Lengths.parse("prompt", "8192"), Lengths.parse("output", "512")
workload = Workload.drawn(prompts, outputs, 96, concurrency=48, seed=0)
target = Target(itl=50)
found = rank(model, VARIANTS, device, DEVICES, workload, Policy(), Efficiency(), target)

print("variant  parallelism  tokens/s  p99 TTFT, s  ms a token  bytes a token and device")
for c in found:
    if c.served is None:
        print(f"{c.variant:8} {c.parallel.label:12} {c.refused}")
        continue
    nbytes = configs.with_attention(model, c.variant).cache_bytes(c.parallel.tp)
    ttft, itl = np.percentile(c.served.ttft, 99), c.served.mean_itl * 1e3
    note = "" if c.meets else "  over the limit"
    print(
        f"{c.variant:8} {c.parallel.label:12} {c.served.throughput:8.0f} {ttft:12.1f} {itl:11.1f} "
        f"{nbytes:25,}{note}"
    )

best = found[0]
engine = Engine(configs.with_attention(model, best.variant), device, best.parallel, Efficiency())
decode, _ = plan.phases(engine, sequences=48 // best.parallel.dp, length=8192, chunk=8192)
cost = decode.cost
print(
    f"a step of {best.variant}, {best.parallel.label}: {cost.total * 1e3:.1f} ms, of which weights "
    f"{cost.weights * 1e3:.1f}, attention {cost.attention * 1e3:.1f} (bound by {decode.binding}), "
    f"collectives {cost.collectives * 1e3:.1f}"
)
