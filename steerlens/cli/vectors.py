"""The commands that make vectors: `vector`, `convert` and `transfer`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlens.cli.options import ModelOptions, PairOptions
from steerlens.cli.values import (
    Json,
    count,
    given,
    local_path,
    option,
    print_json,
    refuse_unused,
    seed_of,
)
from steerlens.errors import SteerlensError, unknown_name

if TYPE_CHECKING:
    from steerlens.tasks import Task
    from steerlens.vectors import SteeringVector

__all__ = ["FORMATS", "convert", "transfer", "vector"]

FORMATS: Mapping[str, str] = {
    "steerlens": ".safetensors",
    "gguf": ".gguf",
    "repeng": ".gguf",
    "steering-vectors": ".safetensors",
    "vllm-lens": ".safetensors",
    "easysteer": ".gguf",
    "plain": ".safetensors",
}
"""File endings by format.

repeng and EasySteer read llama.cpp's control vectors. steering-vectors and vLLM-Lens have no file
format of their own: what they add are the tensors of a plain file.
"""
_METHODS = ("same-shape", "ridge", "procrustes")
Format = Annotated[
    str,
    option(
        "steerlens (exact); gguf (llama.cpp), repeng or easysteer (a control vector); "
        "steering-vectors, vllm-lens or plain (safetensors with one tensor per layer)",
        "--format",
    ),
]


def vector(
    model: ModelOptions,
    pairs: PairOptions,
    *,
    out: Annotated[
        Path, local_path("the file to write; the library's folder with several tasks or --all")
    ],
    estimator: Annotated[str | None, option("see steerlens.vectors")] = None,
    objective: Annotated[
        str | None,
        option("train a direction instead: comply, prefer, imitate or regress (minutes)"),
    ] = None,
    layer: Annotated[
        list[int] | None, option("where it is trained (repeats); by default at two thirds")
    ] = None,
    gate: Annotated[bool, option("train it with a ReLU gate", "--gate")] = False,
    form: Format = "steerlens",
    as_json: Json = False,
) -> None:
    """Make a steering vector, or a library of them."""
    _check_format(form)
    if objective is None:
        refuse_unused({"--layer": layer, "--gate": gate or None}, "is for --objective")
    else:
        refuse_unused({"--estimator": estimator}, "is another way than --objective")
        from steerlens.training.objectives import check_objective

        check_objective(objective)
    sets = pairs.sets()
    if pairs.pairs is not None:
        seed_of(pairs.seed, unused="with --pairs FILE: no pair is drawn")
    is_library = pairs.every_task or len(sets) > 1
    if is_library and out.suffix.lower() in (".safetensors", ".gguf"):
        raise SteerlensError(
            f"{len(sets)} vectors make a library, which is a folder; {out} names a file: "
            "give exactly one --task, or a folder"
        )
    from steerlens.files import check_writable
    from steerlens.vectors import ESTIMATORS

    estimator = estimator or "difference_of_means"
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    check_writable(out / "README.md" if is_library else out)
    loaded = model.load()
    if objective is None:
        make = ESTIMATORS[estimator]
        vectors = [make(pairs.cache(loaded, group, model.chat_format)) for group in sets]
    else:
        from steerlens.training import train_direction

        vectors = [
            train_direction(
                loaded,
                pairs.task_of(group),
                layer or (2 * loaded.cfg.n_layers // 3,),
                objective,
                gate,
                seed=seed_of(pairs.seed),
                chat_format=model.chat_format,
            )
            for group in sets
        ]
    if is_library:
        _write_library(out, vectors, form, as_json)
        return
    [single] = vectors
    _write(single, out, form)
    if as_json:
        print_json(_record(single, out, form))
        return
    print(f"{single!r} written to {out}")


def convert(
    *,
    source: Annotated[Path | None, option("a vector in any known format", "--vector")] = None,
    plan: Annotated[
        Path | None, local_path("or what the plan in this folder chose, if it adds on all tokens")
    ] = None,
    task: Annotated[
        str | None, option("with --plan: which of its tasks, if it has several")
    ] = None,
    out: Annotated[Path, local_path("the file to write")],
    form: Format = "steerlens",
    layer: Annotated[
        list[int] | None,
        option("write this layer only (repeats); llama.cpp steers at every layer of a file"),
    ] = None,
    from_layer: Annotated[
        int | None, option("layer of a file that holds one tensor and does not say which")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a vector in another tool's format, and say how it is used there.

    Formats: steerlens; gguf (llama.cpp, llama-cpp-python), repeng, easysteer: a control vector;
    steering-vectors, vllm-lens, plain: safetensors. After writing, the exact command or lines of
    Python for that tool are printed.
    """
    _check_format(form)
    from steerlens.files import check_writable
    from steerlens.vectors.formats.usage import usage

    if (source is None) == (plan is None):
        raise SteerlensError("give either --vector FILE or --plan FOLDER")
    if source is not None:
        from steerlens.vectors.formats import load_vector, vector_format

        refuse_unused({"--task": task}, "is for --plan")
        loaded, origin = load_vector(source, layer=from_layer), vector_format(source)
    else:
        refuse_unused({"--from-layer": from_layer}, "is for --vector")
        loaded, origin = _of_plan(plan, task), "plan"
    check_writable(out)
    _write(loaded, out, form, layer)
    layers = sorted(layer or loaded.layers)
    if FORMATS[form] == ".gguf":
        layers = [each for each in layers if each > 0]
    how = usage(form, out, layers)
    if as_json:
        record = {**_record(loaded, out, form), "layers": layers}
        print_json({**record, "from": origin, "usage": how})
        return
    print(f"{loaded!r} written to {out} ({form})\n\n{how}", end="")


def _of_plan(folder: Path | None, task: str | None) -> "SteeringVector":
    """A plan's choice as a vector."""
    from steerlens.behaviour.plans.exporting import choice_as_vector
    from steerlens.behaviour.plans.plan import Plan

    assert folder is not None  # one of the two is given
    plan = Plan.load(folder)
    if task is None and len(plan.instructions) > 1:
        raise SteerlensError(
            f"the plan has choices for {', '.join(plan.instructions)}; name one with --task"
        )
    return choice_as_vector(plan, task or plan.instructions[0])


def transfer(
    model: ModelOptions,
    pairs: PairOptions,
    *,
    path: Annotated[Path, option("a vector of another model", "--vector")],
    out: Annotated[Path, local_path("the vector to write")],
    source: Annotated[
        str | None,
        option("the model it was made for, needed to fit a map; loaded with --dtype and --device"),
    ] = None,
    method: Annotated[
        str | None, option(f"{', '.join(_METHODS)}; ridge with --source, else same-shape")
    ] = None,
    match: Annotated[
        str | None, option("match layers by relative depth (depth, the default) or by cka")
    ] = None,
    texts: Annotated[int | None, count("texts a map is fitted on (default: 256)")] = None,
    as_json: Json = False,
) -> None:
    """Carry a vector to another model."""
    method = method or ("ridge" if source else "same-shape")
    _check_map(method, source, match, texts, model.chat_format)
    from steerlens.files import check_writable
    from steerlens.models.loading import load_model
    from steerlens.vectors.formats import load_vector
    from steerlens.vectors.transfer import fit_maps, map_texts, transfer_vector

    carried = load_vector(path)
    if not (pairs.task or pairs.every_task or pairs.pairs):
        sets = pairs.sets_of([_task_of(carried)])
    else:
        sets = pairs.sets()
    if len(sets) != 1:
        raise SteerlensError("give exactly one --task or one --pairs file for one vector")
    is_drawn = pairs.pairs is None or source is not None
    seed = seed_of(pairs.seed, unused=None if is_drawn else "with --pairs FILE: nothing is drawn")
    check_writable(out)
    target = model.load()
    maps = None
    if source is not None:
        words = map_texts(texts or 256, without=sets[0].instruction_id, seed=seed)
        origin = load_model(source, dtype=model.dtype, device=model.device)
        carried.check_model(origin)
        maps = fit_maps(origin, target, words, method=method, **given(match=match))
    result = transfer_vector(carried, pairs.cache(target, sets[0], model.chat_format), maps)
    result.vector.save(out)
    if as_json:
        print_json({"path": str(out), **result.to_json()})
        return
    print(result.table.to_string(index=False, float_format="{:.3f}".format))
    print(f"{result!r} written to {out}")
    print("note: a transferred direction need not steer; compare it with the model's own vector")


def _check_map(
    method: str, source: str | None, match: str | None, texts: int | None, chat_format: str
) -> None:
    from steerlens.vectors.transfer.maps import MATCHES

    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    if (source is None) != (method == "same-shape"):
        needs = "needs" if source is None else "fits no map and takes no"
        raise SteerlensError(
            f"method {method!r} {needs} --source, the model the vector was made for"
        )
    if match is not None and match not in MATCHES:
        raise unknown_name("match", match, MATCHES)
    if method == "same-shape":
        reason = "is for fitting a map, and same-shape fits none"
        refuse_unused({"--match": match, "--texts": texts}, reason)
    elif chat_format != "auto":
        raise SteerlensError(
            "--chat-format has no effect on the texts a map is fitted on, which each model reads "
            "in its own format; leave it out with --source"
        )


def _check_format(form: str) -> None:
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)


def _task_of(vector: "SteeringVector") -> "Task":
    """The task a vector says it carries, if the catalogue has it."""
    from steerlens.tasks import catalogue

    name = vector.metadata.get("instruction")
    if not isinstance(name, str) or name not in catalogue:
        raise SteerlensError(
            f"{vector!r} does not carry a task of the catalogue; give --task or --pairs to "
            "measure its projections on the model"
        )
    return catalogue[name]


def _write(
    vector: "SteeringVector", path: Path, form: str, layers: Sequence[int] | None = None
) -> None:
    from steerlens.vectors.formats import write_gguf, write_plain

    if form == "steerlens":
        (vector if layers is None else vector.restricted_to(layers)).save(path)
    elif FORMATS[form] == ".gguf":
        write_gguf(vector, path, layers=layers)
    else:
        write_plain(vector, path, layers=layers)


def _write_library(
    folder: Path, vectors: "Sequence[SteeringVector]", form: str, as_json: bool
) -> None:
    """A library, and beside its files those of another format if one is asked for."""
    from steerlens.vectors.library import save_library
    from steerlens.vectors.model_cards import file_stem

    library = save_library(folder, vectors)
    ending = FORMATS[form] if FORMATS[form] == ".gguf" else f".{form}{FORMATS[form]}"
    exported = [] if form == "steerlens" else [f"{file_stem(v.name)}{ending}" for v in vectors]
    for vector, name in zip(vectors, exported, strict=False):
        _write(vector, folder / name, form)
    if as_json:
        entries = [dict(entry) for entry in library.entries.values()]
        print_json({"library": str(folder), "vectors": entries, "exported": exported})
        return
    print(f"{len(vectors)} vectors, their cards and an index written to {folder}")


def _record(vector: "SteeringVector", path: Path, form: str) -> dict[str, Any]:
    return {
        "path": str(path),
        "format": form,
        "layers": vector.layers,
        "gaps": vector.gaps.tolist(),
        "targets": vector.targets.tolist(),
        "metadata": vector.metadata,
    }
