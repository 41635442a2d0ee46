"""A study: a directory, and the verbs of the command line as plain functions."""

from decaylaws.study.directory import Study

__all__ = ["Study"]
