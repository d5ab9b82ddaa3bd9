# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Length
#
# Five levels, from *extremely brief* to *extremely verbose* (Stolfo et al. 2025, §4). Two
# questions: do steered responses get longer level by level, and how does length move with strength?

# %%
import pandas as pd

import steerlens as sl
from analyses import behaviour, lengths
from steerlens.views import length_over_strength

model = sl.load_model(behaviour.MODEL, dtype="auto")
LEVELS = [
    f"length:{one}"
    for one in ("extremely_brief", "brief", "medium", "verbose", "extremely_verbose")
]
if behaviour.SMALL:
    LEVELS = LEVELS[:2]

# %% [markdown]
# ## Steered by level
#
# Where and how hard was chosen on the `select` split; the prompts here are of the `report` split
# and do not say how long the answer should be.

# %%
plan = behaviour.planned(model, LEVELS, "length")
result = behaviour.evaluated(
    model, behaviour.report_prompts(LEVELS), "length-report", plan, max_new_tokens=512
)
behaviour.keep(result.plot(), "length-report")

# %%
words = lengths.words_by_level(result)
words.loc[LEVELS]

# %% [markdown]
# ## A number of sentences
#
# The prompts do not say how many. The vector is the same, and one setting serves all numbers of
# sentences: at most 2 to 5, and at least 6 to 12.

# %%
SENTENCES = [f"length_constraints:number_sentences_{one}" for one in ("at_most", "at_least")]
if behaviour.SMALL:
    SENTENCES = SENTENCES[:1]
sentence_plan = behaviour.planned(model, SENTENCES, "sentences")
sentences = behaviour.evaluated(
    model, behaviour.report_prompts(SENTENCES), "sentences-report", sentence_plan, 384
)
lengths.words_by_level(sentences, "n_sentences").loc[SENTENCES]

# %%
behaviour.keep(sentences.plot(), "sentences-report")

# %% [markdown]
# ## Length over strength
#
# Two vectors, each added to response tokens at one layer, with strengths of both signs. *Where
# answers end*: the last token of the model's own answers, minus the ends of sentences after which
# it went on. *Shortest − longest prompts*: the paper's difference of means, at the last prompt
# token. Dashed: a random direction with the norm of the first.

# %%
rows = lengths.sweep(model, LEVELS[0], LEVELS[-1])
figure = length_over_strength(rows, unit="words")
behaviour.figure(figure, "length-over-strength")

# %%
sweep = pd.concat({name: pd.DataFrame(own) for name, own in rows.items()}, names=["line", "row"])
sweep.round(2)

# %% [markdown]
# ## Claims and verdicts

# %%
behaviour.verdicts(lengths.claims(words.loc[LEVELS], sweep, result, sentences))
