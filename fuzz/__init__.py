"""Fuzzers of Limpet, one file for each promise; `make fuzz SECONDS=60 CLASS=name` runs them."""
