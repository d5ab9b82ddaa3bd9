"""Statistics: which interval is used when.

========================================  ==========================================================
a rate (prompts that pass)                Wilson's score interval (`steerlens.stats.rates.wilson`)
a difference of two rates on the same     Newcombe's hybrid of the two Wilson intervals
prompts                                   (`steerlens.stats.rates.paired_difference`)
a mean or a ratio of means over base      Student's *t* over base queries
queries (recovery, what heads write)      with the jackknife's variance (`steerlens.stats.queries`)
AUROC, d′, accuracy of held-out scores    `steerlens.stats.separability`; variances by the
                                          delete-one jackknife over base queries
anything else that has no such formula    percentile bootstrap over base queries or prompts: ratios
                                          of medians, dimensions, rank correlations, the price of
                                          choosing, and how often a layer is chosen
========================================  ==========================================================

The percentile bootstrap is the last resort because it is too short where there are few base
queries: over 16 it covers a mean 91 % of the time and a ratio of skewed sums 89 %, Student's *t*
95 % and 91 % (2,000 simulations each). All intervals are 95 % intervals.
"""
