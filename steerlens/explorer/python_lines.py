"""The Python that gives a trial again."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from steerlens.engine.sampling import GREEDY, Decoding
from steerlens.explorer.sources import OWN_WORDS, Sources, is_vector_file, pairs_of
from steerlens.explorer.trials import Question, Setting, Trial
from steerlens.models.conversations import Prompt
from steerlens.models.loading import model_info

__all__ = ["as_python", "changes"]


def as_python(trial: Trial, sources: Sources) -> str:
    """The lines that reproduce a trial.

    A task of this session is named by ``task``, which the lines expect to be there.

    Raises:
        SteerlensError: As `Sources.task_of`.
    """
    info = model_info(sources.model)
    lines = ["import steerlens as sl", ""]
    lines += [f"model = sl.load_model({info.reference!r}, dtype={info.dtype!r})"]
    question = trial.question
    prompts = [_prompt(question, i) for i in range(len(question.prompts))]
    for number, setting in enumerate(trial.settings):
        if number == 0 or setting.source != trial.settings[0].source:
            fitted, marked = _vector(setting.source, sources)
            lines += fitted
        lines += [_steering(setting)]
        options = f"max_new_tokens={question.max_new_tokens}{marked}{_decoded(question.decoding)}"
        second = "_b" if number else ""
        if len(prompts) == 1:
            lines += [f"run{second} = sl.steer(model, {prompts[0]!r}, steering, {options})"]
        else:
            lines += [f"prompts = {prompts!r}"] if number == 0 else []
            call = f"sl.steer(model, prompt, steering, {options})"
            lines += [f"runs{second} = [{call} for prompt in prompts]"]
    return "\n".join([*lines, ""])


def _prompt(question: Question, i: int) -> str | Sequence[Any]:
    asked: Prompt = question.asked[i]
    return question.prompts[i] if asked == question.prompts[i] else list(asked)


def _vector(source: str, sources: Sources) -> tuple[list[str], str]:
    """Lines that make the vector, and the argument that marks where it was read."""
    task = sources.task_of(source)
    if task is None:
        return [f"vector = sl.load_vector({source!r})"], ""
    pairs = pairs_of(task, sources.n_pairs)
    named, before = repr(source), []
    if sources.is_own(source):
        named, before = "task", [f"# task: the Task {task.id!r} of this session"]
    elif task.id == OWN_WORDS and not is_vector_file(source) and source in task.phrasings:
        named, before = "task", [f"task = sl.Task({OWN_WORDS!r}, [{source!r}])"]
    at = ", position='answer'" if pairs.same_prompts else ""
    lines = [
        *before,
        f"pairs = sl.contrast_pairs({named}, n={len(pairs)})",
        f"vector = sl.difference_of_means(sl.cache_residuals(model, pairs{at}))",
    ]
    return lines, "" if pairs.same_prompts else ", read_at='last_prompt'"


def _steering(setting: Setting) -> str:
    adaptive = f", adaptive={setting.adaptive:g}" if setting.adaptive else ""
    return (
        f"steering = vector.at(layer={setting.layer}, operation={setting.operation!r}, "
        f"strength={setting.strength}, scope={setting.scope!r}{adaptive})"
    )


def _decoded(decoding: Decoding) -> str:
    return "".join(f", {name}={value!r}" for name, value in changes(decoding).items())


def changes(decoding: Decoding) -> dict[str, Any]:
    """The parts of a decoding that are not the default.

    >>> changes(Decoding(repetition_penalty=1.1))
    {'repetition_penalty': 1.1}
    """
    values = {field.name: getattr(decoding, field.name) for field in fields(decoding)}
    return {name: value for name, value in values.items() if value != getattr(GREEDY, name)}
