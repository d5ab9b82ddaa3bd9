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
# # Words to include and words to avoid
#
# A vector is fitted for the words at hand, on prompts that ask for them (Stolfo et al. 2025, §5).
# To avoid words, the paper subtracts the vector of *using* them rather than adding one of
# *avoiding* them; both are compared here.

# %%
import steerlens as sl
from analyses import behaviour, words

model = sl.load_model(behaviour.MODEL, dtype="auto")
INCLUDE, AVOID = "keywords:existence", "keywords:forbidden_words"

# %% [markdown]
# ## What the search chose, on the select split

# %%
plan = behaviour.planned(model, [INCLUDE] if behaviour.SMALL else [INCLUDE, AVOID], "words")
plan.table

# %% [markdown]
# ## Including words

# %%
result = behaviour.evaluated(model, behaviour.report_prompts([INCLUDE]), "words-include", plan)
behaviour.keep(result.plot(), "words-include")

# %% [markdown]
# ## Avoiding a word the answer would use
#
# Each word is the most frequent content word of the prompt's unsteered answer, so there is
# something to avoid. The rate is how often it is still used. `include, subtracted` subtracts the
# vector of using the word; `avoid, added` adds the vector of avoiding it.

# %%
avoided = words.avoidance(model)
avoided

# %%
behaviour.keep(words.avoidance_plot(avoided), "words-avoid")

# %% [markdown]
# ## Claims and verdicts

# %%
behaviour.verdicts(words.claims(result, avoided))
