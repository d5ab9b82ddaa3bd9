"""Does a control vector written here do in llama.cpp what ``add`` does here?

Run by hand, because llama.cpp has to be compiled for it::

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" \\
        pip install llama-cpp-python gguf          # in an environment of its own
    LLAMA_PYTHON=that/bin/python python -m benchmarks.llama_cpp_check

Both sides read the same GGUF model, the same prompt tokens and the same vector: here de-quantised
to float32 and steered by ``add`` with scope ``all``; there as llama.cpp computes it, with the
control vector of the file that `steerlens.vectors.formats.write_gguf` wrote, taken apart by the
``gguf`` package as llama.cpp's own loader does. Compared are the *changes* of next-token
log-probability after the last prompt token, over the tokens most likely without steering: Pearson's
correlation, a prompt at a time. The control is the same comparison with the vector written one
layer too high, as a wrong idea of llama.cpp's layer numbers would have it.

llama.cpp multiplies a quantised model's weights with activations rounded to 8 bits, which alone
changes log-probabilities as much as a weak vector does. ``--float32`` takes that away: llama.cpp
then reads a copy of the model whose tensors are de-quantised to float32, the same numbers that are
used here.

This file is also the program that the other environment runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

INSTRUCTION = "detectable_format:title"
TOP = 200


def main() -> None:
    """Compare, and print one JSON object a layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="8,16,24", help="layers, one after the other")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--float32", action="store_true", help="de-quantise llama.cpp's model")
    arguments = parser.parse_args()
    if not os.environ.get("LLAMA_PYTHON"):
        parser.error("set LLAMA_PYTHON to the python of an environment with llama-cpp-python, gguf")
    layers = [int(layer) for layer in arguments.layers.split(",")]
    for result in compare(layers, arguments.prompts, arguments.strength, arguments.float32):
        print(json.dumps(result))


def compare(
    layers: list[int], n_prompts: int, strength: float, float32: bool
) -> list[dict[str, Any]]:
    """How alike the changes are that steering one layer makes, here and in llama.cpp."""
    import numpy as np
    import torch

    import steerlens as sl
    from benchmarks.gguf_files import converted
    from steerlens.models.loading import tokenize_prompts
    from steerlens.models.sources import DEFAULT_MODEL

    model = sl.load_model(DEFAULT_MODEL)
    [weights] = [one.how for one in sl.available_models() if one.name == DEFAULT_MODEL]
    pairs = sl.contrast_pairs(INSTRUCTION, n=32)
    vector = sl.difference_of_means(sl.cache_residuals(model, pairs, show_progress=False))
    rows = tokenize_prompts(model, [one.text for one in sl.base_queries("report")][:n_prompts])

    def log_probabilities() -> Any:
        with torch.inference_mode():
            last = [model(torch.tensor([row]))[0, -1].log_softmax(-1) for row in rows]
        return torch.stack(last).double().numpy()

    before, after = log_probabilities(), []
    for layer in layers:
        with vector.at(layer, operation="add", strength=strength).applied(model):
            after.append(log_probabilities())
    with tempfile.TemporaryDirectory() as folder:
        paths = [path for layer in layers for path in _written(vector, layer, Path(folder))]
        if float32:
            weights = converted(weights, Path(folder) / "float32.gguf", "F32")
        request = {"model": str(weights), "rows": rows, "strength": strength}
        theirs = _ask({**request, "vectors": [None, *paths]})
    top = np.argsort(-before, axis=-1)[:, :TOP]

    def change(array: Any, baseline: Any) -> Any:
        return np.take_along_axis(array - baseline, top, -1)

    found = []
    for k, layer in enumerate(layers):
        ours = change(after[k], before)
        same, off = (change(theirs[1 + 2 * k + n], theirs[0]) for n in (0, 1))
        found.append(
            {
                "layer": layer,
                "strength": strength,
                "llama_cpp_weights": "float32" if float32 else "as in the file",
                "prompts": len(rows),
                "correlation": _summary(ours, same),
                "correlation_one_layer_off": _summary(ours, off),
                "mean_abs_change": float(np.abs(ours).mean()),
                "mean_abs_difference_of_changes": float(np.abs(ours - same).mean()),
                "mean_abs_difference_unsteered": float(np.abs(change(theirs[0], before)).mean()),
            }
        )
    return found


def _written(vector: Any, layer: int, folder: Path) -> list[str]:
    """The vector at a layer as a file, and the control: the same numbers for the next layer."""
    from dataclasses import replace

    from steerlens.vectors.formats import write_gguf

    right = vector.restricted_to([layer])
    wrong = replace(right, layers=(layer + 1,), metadata={})
    return [
        str(write_gguf(right, folder / f"{layer}.gguf", model_hint="llama")),
        str(write_gguf(wrong, folder / f"{layer}-one-off.gguf", model_hint="llama")),
    ]


def _summary(ours: Any, theirs: Any) -> dict[str, float]:
    import numpy as np

    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours, theirs, strict=True)]
    return {"min": min(found), "median": float(np.median(found)), "max": max(found)}


def _ask(request: dict[str, Any]) -> Any:
    """Log-probabilities [vector prompt vocabulary] from the other environment."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        request["out"] = str(Path(folder) / "log_probabilities.npy")
        done = subprocess.run(
            [os.environ["LLAMA_PYTHON"], str(Path(__file__).resolve()), "--serve"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"llama.cpp failed: {done.stderr.strip()[-500:]}")
        return np.load(request["out"], allow_pickle=False)


def _serve() -> None:
    """Run inside the other environment: a request on standard input, an array into a file."""
    import ctypes

    import gguf
    import llama_cpp  # type: ignore[import-not-found]
    import numpy as np

    request = json.load(sys.stdin)
    llama = llama_cpp.Llama(
        request["model"], n_ctx=2048, n_batch=512, verbose=False, n_threads=1, n_threads_batch=1
    )
    context, width = llama.ctx, llama.n_embd()
    depth = llama_cpp.llama_model_n_layer(llama.model)
    found = []
    for name in request["vectors"]:
        # One row a layer from layer 1 on, as llama.cpp's common_control_vector_load lays them out.
        data = np.zeros((depth, width), dtype=np.float32)
        for tensor in gguf.GGUFReader(name).tensors if name else ():
            data[int(tensor.name.split(".")[1]) - 1] += request["strength"] * tensor.data
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if llama_cpp.llama_set_adapter_cvec(context, pointer, data.size, width, 1, depth):
            sys.exit(f"llama_set_adapter_cvec refused {name}")
        for row in request["rows"]:
            llama.reset()
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            llama.eval(row)
            raw = llama_cpp.llama_get_logits_ith(context, -1)
            logits = np.ctypeslib.as_array(raw, shape=(llama.n_vocab(),)).astype(np.float64)
            peak = logits.max()
            found.append(logits - peak - np.log(np.exp(logits - peak).sum()))
    shape = (len(request["vectors"]), len(request["rows"]), -1)
    np.save(request["out"], np.stack(found).reshape(shape))


if __name__ == "__main__":
    _serve() if sys.argv[1:] == ["--serve"] else main()
