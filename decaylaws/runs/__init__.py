"""Runs: one planned run, the tables of finished ones, objective and noise."""
