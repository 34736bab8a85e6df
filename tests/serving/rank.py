"""One process of a tensor-parallel pair: tokens and capacity of several checkpoints, to a file.

``python rank.py job.json out.json``; torch's launcher variables (RANK, ...) name the process.
"""

import json
import sys
from pathlib import Path

from engines import engine, greedy, tokens_cached


def main(job: Path, out: Path) -> None:
    todo = json.loads(job.read_text())
    done = {}
    for path in todo["paths"]:
        with engine(
            Path(path),
            tensor_parallel_size=2,
            distributed_executor_backend="external_launcher",
            max_model_len=256,
            max_num_batched_tokens=64,
        ) as llm:
            tokens = greedy(llm, todo["prompts"], todo["tokens"])
            done[path] = {"tokens": tokens, "cached": tokens_cached(llm, todo["memory"])}
    out.write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
