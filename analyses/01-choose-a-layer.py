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
# # Choose a layer
#
# Four questions about every layer, side by side. Can the instruction be *read* there? Does writing
# it back *change what the model says*? Which components *write* it? Do these kinds of evidence
# agree? They need not: a layer where it is easy to read is not always one where it steers.

# %%
import steerlens as sl
from steerlens.attribution import layer_geometry

model = sl.load_model("smollm2-135m-instruct", dtype="auto")
task = sl.catalogue["detectable_format:title"]
pairs = sl.contrast_pairs(task, n=64, split="fit")
held_out = sl.contrast_pairs(task, n=16, split="select")
cache = sl.cache_residuals(model, pairs)

# %%
evidence = sl.gather_evidence(
    model, cache, held_out, ("separability", "null", "causal", "components")
)
evidence.ranking

# %% [markdown]
# ## Evidence over layers
#
# Bands are 95 % intervals. The line marks the layer with the highest first-token recovery.
# Separability is near its maximum at almost every layer, so it cannot choose one.

# %% tags=["figure:evidence"]
evidence.plot()

# %% [markdown]
# ## Do the kinds agree?
#
# Spearman's rank correlation over layers, with an interval.

# %%
evidence.agreement.round(2)

# %% [markdown]
# ## Who writes the direction?

# %% tags=["figure:writers"]
evidence.writing.plot()

# %% [markdown]
# ## Where does the direction form, and where does it turn?

# %% tags=["figure:geometry"]
layer_geometry(cache).plot()
