"""Configurations of other trainers, read back."""
