"""The commands about vectors: `vector`, `steer`, `convert` and `transfer`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.cli.options import (
    caches,
    load,
    local_path,
    pair_sets,
    positive,
    print_json,
    refuse,
    seed_of,
)
from steerlens.errors import SteerlensError, unknown_name

if TYPE_CHECKING:
    from steerlens.vectors import SteeringVector

__all__ = [
    "FORMATS",
    "add_convert",
    "add_intervention",
    "add_steering",
    "add_transfer",
    "add_vector",
    "convert",
    "operation_of",
    "steer",
    "transfer",
    "vector",
]

FORMATS: Mapping[str, str] = {
    "steerlens": ".safetensors",
    "gguf": ".gguf",
    "repeng": ".gguf",
    "steering-vectors": ".safetensors",
    "plain": ".safetensors",
}
"""Formats by name, with the ending of their files.

repeng reads and writes llama.cpp's control vectors. steering-vectors has no file format of its own:
its ``layer_activations`` are the tensors of a plain file.
"""
_METHODS = ("same-shape", "ridge", "procrustes")
_FORMAT_HELP = (
    "steerlens (exact), gguf (llama.cpp), repeng (the same file), steering-vectors or plain "
    "(safetensors with one tensor a layer)"
)


# --- options ---


def add_vector(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens vector`, besides model and pairs."""
    parser.add_argument(
        "--out",
        type=local_path,
        required=True,
        help="the file to write; with several instructions or --all, the library's folder",
    )
    parser.add_argument("--estimator", default="difference_of_means", help="see steerlens.vectors")
    parser.add_argument("--format", default="steerlens", help=_FORMAT_HELP)


def add_steering(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens steer`."""
    add_intervention(parser)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=positive, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy")
    parser.add_argument("--seed", type=int, help="of sampling, at a --temperature above 0")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens convert`."""
    parser.add_argument("--vector", type=Path, required=True, help="a vector in any known format")
    parser.add_argument("--out", type=local_path, required=True, help="the file to write")
    parser.add_argument("--format", default="steerlens", help=_FORMAT_HELP)
    parser.add_argument(
        "--layer",
        type=int,
        action="append",
        help="write this layer only (repeats); llama.cpp steers at every layer of a file",
    )
    parser.add_argument(
        "--from-layer", type=int, help="layer of a file that holds one tensor and does not say"
    )


def add_transfer(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens transfer`, besides the target model and its pairs."""
    parser.add_argument("--vector", type=Path, required=True, help="a vector of another model")
    parser.add_argument("--out", type=local_path, required=True, help="the vector to write")
    parser.add_argument(
        "--source",
        help="the model it was made for, needed to fit a map; loaded with --dtype and --device",
    )
    parser.add_argument(
        "--method", help=f"{', '.join(_METHODS)}; ridge with --source, else same-shape"
    )
    parser.add_argument("--match", help="layers by relative depth (default), or by cka")
    parser.add_argument("--texts", type=positive, help="texts a map is fitted on (default: 256)")


def add_intervention(parser: argparse.ArgumentParser) -> None:
    """Options that say which vector is applied, where, and how."""
    parser.add_argument("--vector", type=Path, required=True, help="a vector in any known format")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument(
        "--operation",
        help="add, set_projection or ablate; set_projection where the vector has targets, else add",
    )
    parser.add_argument("--scope", default="all", help="all, prompt or response")


# --- commands ---


def vector(arguments: argparse.Namespace) -> None:
    """`steerlens vector`: one file, or a library of several."""
    _check_format(arguments.format)
    sets = pair_sets(arguments)
    if arguments.pairs is not None:
        seed_of(arguments, unused="with --pairs FILE: no pair is drawn")
    folder = arguments.all or len(sets) > 1
    if folder and arguments.out.suffix.lower() in (".safetensors", ".gguf"):
        raise SteerlensError(
            f"{len(sets)} vectors make a library, which is a folder; {arguments.out} names a file: "
            "give exactly one --instruction, or a folder"
        )
    from steerlens.files import check_writable
    from steerlens.vectors import ESTIMATORS

    if arguments.estimator not in ESTIMATORS:
        raise unknown_name("estimator", arguments.estimator, ESTIMATORS)
    estimate = ESTIMATORS[arguments.estimator]
    check_writable(arguments.out / "README.md" if folder else arguments.out)
    vectors = [estimate(cache) for cache in caches(arguments, sets)]
    if folder:
        _write_library(arguments, vectors)
        return
    [one] = vectors
    _write(one, arguments.out, arguments.format)
    if arguments.json:
        print_json(_record(one, arguments.out, arguments.format))
        return
    print(f"{one!r} written to {arguments.out}")


def steer(arguments: argparse.Namespace) -> None:
    """`steerlens steer`: a prompt answered with and without."""
    from steerlens.effects import steer as run_steer
    from steerlens.vectors.formats import load_vector

    vector = load_vector(arguments.vector)
    steering = vector.at(
        arguments.layer, operation_of(arguments, vector), arguments.strength, arguments.scope
    )
    greedy = "at --temperature 0: no token is drawn" if arguments.temperature == 0 else None
    seed = seed_of(arguments, unused=greedy)
    run = run_steer(
        load(arguments),
        arguments.prompt,
        steering,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=seed,
        chat_format=arguments.chat_format,
    )
    frame = run.effects.table
    if arguments.json:
        print_json(
            {
                "prompt": run.prompt,
                "baseline": run.baseline,
                "steered": run.steered,
                "parts_at": run.parts_at,
                "mean_kl": run.effects.mean_kl,
                "settings": dict(run.settings),
                "effects": frame.to_dict("records"),
            }
        )
        return
    print(f"baseline:\n{run.baseline}\n\nsteered ({steering.interventions[0].describe()}):")
    print(f"{run.steered}\n\nmean KL over the response: {run.effects.mean_kl:.3f} nats")
    print("largest effects:")
    columns = ["position", "token", "role", "kl", "projection_before", "projection_after"]
    strongest = frame.nlargest(10, "kl")[columns].sort_values("position")
    strongest["token"] = strongest["token"].map(repr)
    print(strongest.to_string(index=False, float_format="{:.3f}".format))


def convert(arguments: argparse.Namespace) -> None:
    """`steerlens convert`: a vector from one format to another."""
    _check_format(arguments.format)
    from steerlens.files import check_writable
    from steerlens.vectors.formats import load_vector, vector_format

    vector = load_vector(arguments.vector, layer=arguments.from_layer)
    check_writable(arguments.out)
    _write(vector, arguments.out, arguments.format, arguments.layer)
    if arguments.json:
        record = _record(vector, arguments.out, arguments.format)
        record["layers"] = list(arguments.layer or vector.layers)
        print_json({**record, "from": vector_format(arguments.vector)})
        return
    print(f"{vector!r} written to {arguments.out} ({arguments.format})")


def transfer(arguments: argparse.Namespace) -> None:
    """`steerlens transfer`: a vector for another model than it was made for."""
    method = arguments.method or ("ridge" if arguments.source else "same-shape")
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    if (arguments.source is None) != (method == "same-shape"):
        needs = "needs" if arguments.source is None else "fits no map and takes no"
        raise SteerlensError(
            f"method {method!r} {needs} --source, the model the vector was made for"
        )
    from steerlens.files import check_writable
    from steerlens.models.loading import load_model
    from steerlens.vectors.formats import load_vector
    from steerlens.vectors.transfer import fit_maps, map_texts, transfer_vector
    from steerlens.vectors.transfer.maps import MATCHES

    match = arguments.match or "depth"
    if match not in MATCHES:
        raise unknown_name("match", match, MATCHES)
    if method == "same-shape":
        refuse(arguments, ["--match", "--texts"], "is for fitting a map, and same-shape fits none")
    elif arguments.chat_format != "auto":
        raise SteerlensError(
            "--chat-format has no effect on the texts a map is fitted on, which each model reads "
            "in its own format; leave it out with --source"
        )
    vector = load_vector(arguments.vector)
    if not (arguments.instruction or arguments.all or arguments.pairs):
        arguments.instruction = _carried(vector)
    [pairs] = _only_one(pair_sets(arguments))
    nothing = arguments.pairs is not None and method == "same-shape"
    seed = seed_of(arguments, unused="with --pairs FILE: nothing is drawn" if nothing else None)
    check_writable(arguments.out)
    model = load(arguments)
    source = None
    if arguments.source is not None:
        n_texts = 256 if arguments.texts is None else arguments.texts
        texts = map_texts(n_texts, without=pairs.instruction_id, seed=seed)
        source = load_model(arguments.source, dtype=arguments.dtype, device=arguments.device)
        vector.check_model(source)
    [cache] = caches(arguments, [pairs], model)
    maps = None
    if source is not None:
        maps = fit_maps(source, model, texts, method=method, match=match)
    found = transfer_vector(vector, cache, maps)
    found.vector.save(arguments.out)
    if arguments.json:
        print_json({"path": str(arguments.out), **found.to_json()})
        return
    print(found.table.to_string(index=False, float_format="{:.3f}".format))
    print(f"{found!r} written to {arguments.out}")
    print("note: a transferred direction need not steer; compare it with the model's own vector")


# --- what they share ---


def _check_format(name: str) -> None:
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)


def operation_of(arguments: argparse.Namespace, vector: "SteeringVector") -> str:
    """The operation asked for; by default one that the vector can do."""
    if arguments.operation is not None:
        return str(arguments.operation)
    return "add" if vector.metadata.get("targets_known") is False else "set_projection"


def _carried(vector: "SteeringVector") -> list[str]:
    """The instruction a vector says it carries, if the catalogue has it."""
    from steerlens.tasks import catalogue

    name = vector.metadata.get("instruction")
    if not isinstance(name, str) or name not in catalogue:
        raise SteerlensError(
            f"{vector!r} does not carry an instruction of the catalogue; give --instruction or "
            "--pairs to measure its projections on the model"
        )
    return [name]


def _only_one(sets: Sequence[Any]) -> Sequence[Any]:
    if len(sets) != 1:
        raise SteerlensError("give exactly one --instruction or one --pairs file for one vector")
    return sets


def _write(
    vector: "SteeringVector", path: Path, form: str, layers: Sequence[int] | None = None
) -> None:
    """One vector in one format."""
    from steerlens.vectors.formats import write_gguf, write_plain

    if form == "steerlens":
        (vector if layers is None else vector.restricted_to(layers)).save(path)
    elif FORMATS[form] == ".gguf":
        write_gguf(vector, path, layers=layers)
    else:
        write_plain(vector, path, layers=layers)


def _write_library(arguments: argparse.Namespace, vectors: "Sequence[SteeringVector]") -> None:
    """A library, and beside its files those of another format where one is asked for."""
    from steerlens.vectors.library import save_library
    from steerlens.vectors.model_cards import file_stem

    library = save_library(arguments.out, vectors)
    form, exported = arguments.format, []
    if form != "steerlens":
        middle = "" if FORMATS[form] == ".gguf" else f".{form}"
        for one in vectors:
            name = f"{file_stem(one.name)}{middle}{FORMATS[form]}"
            _write(one, arguments.out / name, form)
            exported.append(name)
    if arguments.json:
        print_json(
            {
                "library": str(arguments.out),
                "vectors": [dict(entry) for entry in library.entries.values()],
                "exported": exported,
            }
        )
        return
    print(f"{len(vectors)} vectors, their cards and an index written to {arguments.out}")


def _record(vector: "SteeringVector", path: Path, form: str) -> dict[str, Any]:
    return {
        "path": str(path),
        "format": form,
        "layers": list(vector.layers),
        "gaps": vector.gaps.tolist(),
        "targets": vector.targets.tolist(),
        "metadata": dict(vector.metadata),
    }
