"""Benchmarks of Limpet, one file for each workload; `make bench` runs them beside sqlite3 and LMDB."""
