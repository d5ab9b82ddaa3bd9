"""What runs inside a peer's own environment: one program per peer, and how to speak with it.

The driver (`benchmarks.peers`) starts ``python -P peer_programs.py NAME``, writes a request as one
line of JSON, and then asks for runs, a line each:

    {"streams": 8, "n_new_tokens": 32}  →  {"seconds": 1.9, "tokens": [[…], …]}

Every program reads the same token rows, answers the first `streams` of them together, greedily and
to the full length, and times that itself. It imports nothing of this project: the environment holds
the peer and what the peer needs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

_PROMPT_BATCH = 2048

Answer = Callable[[int, int], tuple[float, list[list[int]]]]
"""Seconds and new tokens of the first so many rows, for so many new tokens."""


def vllm(request: dict[str, Any]) -> Answer:
    """vLLM's CPU build; prompts are not remembered from one run to the next."""
    # One process, or the engine is started as a second one that the driver does not end.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    rows = request["rows"]
    llm = LLM(
        request["folder"],
        dtype=request["dtype"],
        max_model_len=1024,
        max_num_seqs=len(rows),
        enable_prefix_caching=False,
    )

    def answer(n_streams: int, n_new: int) -> tuple[float, list[list[int]]]:
        sampling = SamplingParams(temperature=0, max_tokens=n_new, min_tokens=n_new)
        prompts = [{"prompt_token_ids": row} for row in rows[:n_streams]]
        started = time.perf_counter()
        done = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        return seconds, [list(output.outputs[0].token_ids) for output in done]

    return answer


def llama_cpp(request: dict[str, Any]) -> Answer:
    """llama.cpp's batched decoding, as its ``llama-batched-bench`` does it, with real prompts.

    Prompts are read in batches of `_PROMPT_BATCH` tokens; then every step decodes one token of each
    stream in one batch. The next token is the greatest logit.
    """
    import llama_cpp as ll  # type: ignore[import-not-found]
    import numpy as np

    rows, threads = request["rows"], request["threads"]
    room = max(map(len, rows)) + request["n_new_tokens"] + 1
    ll.llama_backend_init()
    options = ll.llama_model_default_params()
    model = ll.llama_model_load_from_file(request["gguf"].encode(), options)
    n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    batch = ll.llama_batch_init(_PROMPT_BATCH, 0, 1)
    ends = request["end_tokens"]

    def open_context(n_streams: int) -> Any:
        options = ll.llama_context_default_params()
        options.n_ctx, options.n_seq_max = room * n_streams, n_streams
        options.n_batch = options.n_ubatch = _PROMPT_BATCH
        options.n_threads = options.n_threads_batch = threads
        return ll.llama_init_from_model(model, options)

    def put(token: int, position: int, stream: int, wanted: bool) -> None:
        i = batch.n_tokens
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
        batch.n_tokens = i + 1

    def greatest(context: Any, place: int) -> int:
        raw = ll.llama_get_logits_ith(context, place)
        logits = np.ctypeslib.as_array(raw, shape=(n_vocab,))
        logits[ends] = -np.inf
        return int(logits.argmax())

    def decode(context: Any) -> None:
        if ll.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def answer(n_streams: int, n_new: int) -> tuple[float, list[list[int]]]:
        context = open_context(n_streams)
        started = time.perf_counter()
        following: list[list[int]] = [[] for _ in range(n_streams)]
        waiting = [
            (token, position, stream, position == len(row) - 1)
            for stream, row in enumerate(rows[:n_streams])
            for position, token in enumerate(row)
        ]
        for start in range(0, len(waiting), _PROMPT_BATCH):
            part = waiting[start : start + _PROMPT_BATCH]
            batch.n_tokens = 0
            for item in part:
                put(*item)
            decode(context)
            for place, (_, _, stream, is_last) in enumerate(part):
                if is_last:
                    following[stream].append(greatest(context, place))
        for step in range(n_new - 1):
            batch.n_tokens = 0
            for stream in range(n_streams):
                put(following[stream][-1], len(rows[stream]) + step, stream, True)
            decode(context)
            for stream in range(n_streams):
                following[stream].append(greatest(context, stream))
        seconds = time.perf_counter() - started
        ll.llama_free(context)
        return seconds, following

    return answer


PROGRAMS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "vllm": vllm,
    "llama_cpp": llama_cpp,
}


def main() -> None:
    """Answer requests until standard input ends."""
    # Libraries print to standard output as well; only replies may go there.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answer = PROGRAMS[sys.argv[1]](json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), file=replies)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds, tokens = answer(asked["streams"], asked["n_new_tokens"])
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=replies)


if __name__ == "__main__":
    main()
