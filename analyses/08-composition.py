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
# # Four ways of steering towards several instructions
#
# *Added*: the vectors are added at one layer. *Jointly*: all projection targets are met at once at
# one layer (least squares where they conflict). *Each at its own layer*: the settings that work
# alone, together. *Each at its own layer and tokens*: the best setting of each on the prompt, on
# the response or on both, in the combination that works best, so that an instruction about the
# beginning of an answer and one about all of it need not meet. Layers, strengths, balances and
# tokens are chosen on the `select` split; the table is from the `report` split. How much is lost,
# compared with independent instructions?

# %%
import steerlens as sl
from analyses import behaviour, composition

model = sl.load_model(behaviour.MODEL, dtype="auto")

# %%
found = composition.composed(model)
table = composition.table(found)
table

# %% [markdown]
# `kept` is the rate at which all are followed, divided by the product of the single rates on the
# same prompts, with a bootstrap interval over prompts. `all, no loop` counts only responses that do
# not degenerate.

# %% [markdown]
# ## Claims and verdicts

# %%
behaviour.verdicts(composition.claims(table, model))
