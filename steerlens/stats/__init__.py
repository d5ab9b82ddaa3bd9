"""Statistics: intervals of rates and means, resampling, and the uncertainty of separability.

One rule for intervals. A **rate** (answers that pass) has Wilson's, two paired rates Newcombe's
(`steerlens.stats.rates`). A **mean over base queries** (causal recovery, what components write) has
Student's t over queries (`steerlens.stats.means`): the percentile bootstrap covers 89 to 91 %
there. What is no mean of independent queries (AUROC, d′, selection of layers) is resampled by query
(`steerlens.stats.separability`, `steerlens.stats.resampling`).
"""
