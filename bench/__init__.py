"""Benchmarks: `python -m bench.NAME`, each one command that prints a table and can write JSON."""
