"""Residual-stream activations of contrast pairs, in memory and in shards on disk."""
