"""Analyses: what the package finds on real models; notebooks and the scripts behind them."""
