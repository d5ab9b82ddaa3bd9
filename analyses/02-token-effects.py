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
# # What steering does to each token
#
# Two modes that answer different questions. *Forced*: both models score the same text, the steered
# one, so that every difference is the intervention's. *Free*: each model continues its own text.

# %%
import steerlens as sl
from analyses import behaviour

model = sl.load_model(behaviour.MODEL)
task = sl.catalogue["detectable_format:title"]
pairs = sl.contrast_pairs(task, n=8 if behaviour.SMALL else 64, split="fit")
vector = sl.difference_of_means(sl.cache_residuals(model, pairs))
run = sl.steer(
    model,
    "Tell me about Rome.",
    vector.at(layer=24, strength=1.5, scope="prompt"),
    max_new_tokens=8 if behaviour.SMALL else 48,
)

# %% [markdown]
# ## Forced: KL(steered‖baseline) at every token
#
# Underlined tokens were steered; the vector was read at the last token of the prompt.

# %%
behaviour.figure(run.effects.plot(), "token-effects")

# %%
columns = ["token", "role", "kl", "projection_before", "projection_after", "entropy_change"]
run.effects.frame[columns].round(3)

# %% [markdown]
# ## Free: where the two texts part

# %%
behaviour.figure(run.plot(), "two-texts")

# %% [markdown]
# ## Too strong
#
# Sooner or later more strength only breaks the text. Calibration finds the strength at which the
# steered model stays within a budget of divergence.

# %%
prompts = [pair.uninstructed for pair in sl.contrast_pairs(task, n=8, split="select")]
calibration = sl.calibrate(
    model,
    vector.at(layer=24, operation="add"),
    prompts[: 2 if behaviour.SMALL else 8],
    target_kl=0.1,
    max_new_tokens=8 if behaviour.SMALL else 48,
)
calibration
