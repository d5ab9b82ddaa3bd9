"""Pictures of per-token effects: what `.plot()` and a notebook show of the results in
`steerlens.effects`.

Each function takes a result and draws it with the pictures of this package; they can be drawn from
the results' tables by hand as well.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from steerlens.errors import SteerlensError, unknown_name
from steerlens.views import (
    Section,
    excerpt,
    layer_token_map,
    ranked_tokens,
    summary,
    survival_curve,
    text_figure,
    token_strip,
)
from steerlens.views.numbers import show
from steerlens.views.quantities import QUANTITIES

if TYPE_CHECKING:
    from steerlens.effects.contributions import TokenContributions
    from steerlens.effects.forced import TokenEffects
    from steerlens.effects.free import FreeEffects
    from steerlens.effects.lens import LensReadout
    from steerlens.effects.propagation import Travel
    from steerlens.effects.run import SteeredRun

__all__ = [
    "PICTURES",
    "picture",
    "picture_of_contributions",
    "picture_of_lens",
    "picture_of_texts",
    "picture_of_travel",
    "summary_of_contributions",
    "summary_of_effects",
    "summary_of_run",
    "summary_of_texts",
]

_STRIPS = ("kl", "logprob_change", "projection_change", "entropy_change")
_OWN = ("surprisal", "entropy", "projection")
_STREAM = "residual-stream units"
# Tokens a notebook shows of a text before it says how many more there are.
_MOST_PROMPT, _MOST_RESPONSE = 80, 240


def picture(effects: "TokenEffects", what: str, intervention: int = 0) -> go.Figure:
    """See `TokenEffects.plot`.

    Raises:
        UnknownNameError: A picture that does not exist.
        SteerlensError: An intervention that does not exist, or read-outs that were not asked for.
    """
    n_interventions = len(effects.interventions)
    if not 0 <= intervention < n_interventions:
        raise SteerlensError(
            f"intervention {intervention} does not exist; there are {n_interventions}, counted "
            "from 0"
        )
    if what in _STRIPS:
        return _strip(effects, what, intervention)
    if what not in PICTURES:
        raise unknown_name("picture", what, (*_STRIPS, *PICTURES))
    return PICTURES[what](effects, intervention)


def _strip(effects: "TokenEffects", what: str, intervention: int) -> go.Figure:
    frame = effects.table.assign(
        projection_before=effects.projection_before[intervention].tolist(),
        projection_after=effects.projection_after[intervention].tolist(),
    )
    name = QUANTITIES[what].name
    return text_figure(
        _by_role(frame),
        what,
        title=f"What steering does to each token: {name}",
        subtitle=effects.interventions[intervention],
    )


def _by_role(frame: pd.DataFrame, response: str = "response") -> list[Section]:
    return [
        Section("prompt", frame[frame.role == "prompt"]),
        Section(response, frame[frame.role == "response"]),
    ]


def _map(
    effects: "TokenEffects",
    values: Any,
    name: str,
    unit: str,
    title: str,
    subtitle: str,
    signed: bool = True,
) -> go.Figure:
    return layer_token_map(
        effects.tokens,
        effects.travel.layers,
        values,
        name,
        unit=unit,
        signed=signed,
        n_prompt=effects.n_prompt,
        title=title,
        subtitle=subtitle,
    )


def _travel(effects: "TokenEffects", intervention: int) -> go.Figure:
    return _map(
        effects,
        effects.travel.projection_change[intervention],
        "change of projection",
        _STREAM,
        "How the intervention travels: change of projection on its direction",
        effects.interventions[intervention],
    )


def _survival(effects: "TokenEffects", intervention: int) -> go.Figure:
    return _map(
        effects,
        effects.travel.survival[intervention],
        "share left",
        "",
        "How the intervention travels: share of the change of projection left",
        effects.interventions[intervention],
    )


def _shift(effects: "TokenEffects", _intervention: int) -> go.Figure:
    title = "How far the steered stream is from the baseline's, along any direction"
    said = "; ".join(effects.interventions)
    return _map(effects, effects.travel.shift, "shift", _STREAM, title, said, signed=False)


def _norm_change(effects: "TokenEffects", _intervention: int) -> go.Figure:
    title = "How much longer (orange) or shorter (blue) steered residuals are"
    said = "; ".join(effects.interventions)
    return _map(effects, effects.travel.norm_change, "change of norm", _STREAM, title, said)


def _lens(effects: "TokenEffects", _intervention: int) -> go.Figure:
    if effects.lens is None:
        raise SteerlensError("no layer was read through the logit lens; ask with lens_layers=[…]")
    return picture_of_lens(effects.lens)


def _tokens(effects: "TokenEffects", _intervention: int) -> go.Figure:
    return ranked_tokens(
        effects.mean_promoted,
        effects.mean_suppressed,
        quantity="mean change of probability over the response",
        title="Tokens that steering promotes and suppresses",
    )


def _curve(effects: "TokenEffects", _intervention: int) -> go.Figure:
    return picture_of_travel(effects.travel, dict(enumerate(effects.interventions)))


PICTURES: dict[str, Callable[["TokenEffects", int], go.Figure]] = {
    "travel": _travel,
    "survival": _survival,
    "shift": _shift,
    "norm_change": _norm_change,
    "lens": _lens,
    "tokens": _tokens,
    "curve": _curve,
}


def picture_of_lens(lens: "LensReadout") -> go.Figure:
    """See `LensReadout.plot`."""
    return layer_token_map(
        lens.tokens,
        lens.layers,
        lens.kl,
        "KL(steered‖baseline)",
        unit="nats",
        signed=False,
        n_prompt=lens.n_prompt,
        title="Where the two streams begin to say different things (logit lens)",
    )


def picture_of_travel(travel: "Travel", names: dict[int, str] | None = None) -> go.Figure:
    """See `Travel.plot`."""
    return survival_curve(
        travel.table, names, title="Share of the intervention left at later layers"
    )


def picture_of_texts(free: "FreeEffects", what: str) -> go.Figure:
    """See `FreeEffects.plot`.

    Raises:
        UnknownNameError: A quantity that does not exist.
    """
    if what not in _OWN:
        raise unknown_name("picture", what, _OWN)
    sections = []
    alignment = free.alignment
    found = alignment.describe()
    for name, own in (("baseline", free.baseline), ("steered", free.steered)):
        frame = own.table
        if name == "baseline":
            sections.append(Section("prompt", frame[frame.role == "prompt"]))
        sections.append(
            Section(
                f"{name} response" + (f" ({found})" if name == "steered" else ""),
                frame[frame.role == "response"],
                parts_at=alignment.parts_at,
                meets_at=tuple(getattr(run, name) for run in alignment.meetings),
            )
        )
    title = f"Two responses, each under the model that wrote it: {QUANTITIES[what].name}"
    return text_figure(sections, what, title=title, subtitle="; ".join(free.interventions))


def picture_of_contributions(found: "TokenContributions") -> go.Figure:
    """See `TokenContributions.plot`."""
    whole = f"{show(found.change, 2, signed=True)} nats"
    title = f"What made {found.target!r} more or less likely: {whole} in all, by steered position"
    return text_figure(_by_role(_contribution_rows(found)), "contribution", title=title)


def _contribution_rows(found: "TokenContributions") -> pd.DataFrame:
    """A row a token; the contribution of a span stands on each of its tokens."""
    n_tokens = len(found.tokens)
    frame = pd.DataFrame(
        {
            "position": range(n_tokens),
            "token": found.tokens,
            "role": ["prompt"] * found.n_prompt + ["response"] * (n_tokens - found.n_prompt),
            "steered": False,
            "contribution": 0.0,
        }
    )
    for (start, stop), value in zip(found.spans, found.contributions.tolist(), strict=True):
        frame.loc[start : stop - 1, "contribution"] = value
        frame.loc[start : stop - 1, "steered"] = True
    return frame


def summary_of_effects(effects: "TokenEffects") -> str:
    """See `TokenEffects`: a few numbers, and the text shaded by KL."""
    n_response = len(effects) - effects.n_prompt
    facts = {
        "prompt tokens": effects.n_prompt,
        "response tokens": n_response,
        "mean KL over the response (nats)": effects.mean_kl,
        "largest anywhere": float(effects.kl.max()),
    }
    heading = f"Effects, both models scoring the same text: {'; '.join(effects.interventions)}"
    return summary(heading, facts, body=_shortened(effects.table, "kl"))


def summary_of_texts(free: "FreeEffects") -> str:
    """See `FreeEffects`: both texts and how they part."""
    heading = f"Two texts, each under its own model: {'; '.join(free.interventions)}"
    body = "".join(
        excerpt("".join(own.tokens[own.n_prompt :]), name)
        for name, own in (("baseline", free.baseline), ("steered", free.steered))
    )
    facts = {"tokens in common": f"{free.alignment.similarity:.0%}"}
    return summary(heading, facts, body=f"<div>{free.alignment.describe()}</div>{body}")


def summary_of_run(run: "SteeredRun") -> str:
    """See `SteeredRun`: the prompt, both responses, and the steered one shaded by KL."""
    body = excerpt(run.baseline, "baseline") + excerpt(run.steered, "steered")
    steered = run.effects.table[run.effects.table.role == "response"]
    shaded = _shortened(steered, "kl", run.parts_at)
    label = (
        '<div style="margin-top:.5em;font-size:.8em;opacity:.7">steered, shaded by what steering '
        "changed</div>"
    )
    facts = {"steering": "; ".join(run.effects.interventions)}
    parting = f"<div>{run.free.alignment.describe()}</div>"
    return summary(f"Prompt: {run.prompt}", facts, body=parting + body + label + shaded)


def summary_of_contributions(found: "TokenContributions") -> str:
    """See `TokenContributions`: the largest parts."""
    facts = {
        "log-probability, baseline": found.logprob_baseline,
        "steered": found.logprob_steered,
        "change (nats)": found.change,
    }
    frame = found.table
    largest = frame.reindex(frame.contribution.abs().sort_values(ascending=False).index)
    heading = f"{found.target!r} at position {found.position}, by steered position"
    return summary(heading, facts, largest[["start", "text", "role", "contribution", "share"]])


def _shortened(frame: pd.DataFrame, quantity: str, parts_at: int | None = None) -> str:
    """A strip of the end of the prompt and the beginning of the response."""
    prompt, response = frame[frame.role == "prompt"], frame[frame.role == "response"]
    kept = pd.concat([prompt.tail(_MOST_PROMPT), response.head(_MOST_RESPONSE)])
    rest = len(frame) - len(kept)
    more = f'<p style="opacity:.7">… {rest:,} tokens more; .plot() shows all</p>' if rest else ""
    return token_strip(kept, quantity, parts_at=parts_at) + more
