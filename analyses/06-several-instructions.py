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
# # Several instructions at once
#
# Each instruction keeps its own layer, operation and strength, chosen alone on the `select` split;
# the interventions of a prompt's instructions are applied together (Stolfo et al. 2025, §6). How
# much does each lose in the company of the others? If they were independent, all would be followed
# as often as the product of their single rates.

# %%
import steerlens as sl
from analyses import behaviour, together
from steerlens.behaviour.evaluation import several

model = sl.load_model(behaviour.MODEL, dtype="auto")
TITLE, LOWER = "detectable_format:title", "change_case:english_lowercase"
NO_COMMA, BRIEF = "punctuation:no_comma", "length:extremely_brief"
# Two formats, three, and a format with a length.
COMBINATIONS = [
    (TITLE, LOWER),
    (TITLE, NO_COMMA),
    (LOWER, NO_COMMA),
    (TITLE, LOWER, NO_COMMA),
    (TITLE, BRIEF),
]
if behaviour.SMALL:
    COMBINATIONS = COMBINATIONS[:1]

# %%
plan = together.plan_of(model, COMBINATIONS)
plan.table[plan.table.context == "uninstructed"]

# %% [markdown]
# ## Alone and together, on the same prompts of the report split

# %%
prompts = several(COMBINATIONS, 2 if behaviour.SMALL else 24)
both = behaviour.evaluated(model, prompts, "several-together", plan)
alone = behaviour.evaluated(model, together.one_by_one(prompts), "several-alone", plan)
table = together.table(both, alone)
table

# %%
behaviour.keep(both.plot(), "several-together")

# %% [markdown]
# ## Claims and verdicts

# %%
behaviour.verdicts(together.claims(table, both))
