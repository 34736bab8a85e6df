"""One engine in a process of its own: all that it does to a step, to a file.

``python alone.py job.json out.json``. A process of its own, since drafts change the number of
threads, with which a model after the first does not load: ``ridgeline.vllm.packing``.
"""

import json
import sys
from pathlib import Path

from engines import counter, engine, greedy

EVENTS = ("num_preemptions", "prefix_cache_hits", "spec_decode_num_drafts")


def main(job: Path, out: Path) -> None:
    todo = json.loads(job.read_text())
    with engine(
        Path(todo["path"]),
        kv_cache_memory_bytes=todo["memory"],
        max_model_len=768,
        max_num_seqs=6,
        max_num_batched_tokens=300,
        enable_prefix_caching=True,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        },
    ) as llm:
        tokens = greedy(llm, todo["prompts"], todo["tokens"])
        events = {event: counter(llm, event) for event in EVENTS}
        again = greedy(llm, todo["prompts"][1:3], todo["tokens"])
        hits = counter(llm, "prefix_cache_hits") - events["prefix_cache_hits"]
        pages = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
    report = {"tokens": tokens, "events": events, "pages": pages, "again": again, "hits": hits}
    out.write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
