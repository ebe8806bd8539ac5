"""Trained models that benchmarks start from, and their data."""
