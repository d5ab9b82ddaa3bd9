"""Side-by-side speed and memory of steerlens and named peers; see ``benchmarks/README.md``."""
