"""What every section of a settings file keeps: an unknown key is an error, and nothing changes after the check."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping of ``study.yaml``. A name that YAML reads as a number is taken as the text that it was."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
