"""What a report is made from, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from decaylaws.recipe import Recipe
from decaylaws.study import Study, confirm
from decaylaws.study.decision import load_recipe
from decaylaws.study.layout import read_json


@dataclass(frozen=True)
class Material:
    """The files of a study that sections read.

    Attributes:
        study: the study.
        recipe: the recommended recipe.
        found: what the search stored (``Recommendation.to_dict``); keys that an older version did not write
            are absent, so sections ask for them with ``get``.
    """

    study: Study
    recipe: Recipe
    found: Mapping[str, Any]

    @classmethod
    def of(cls, study: Study) -> Material:
        """Read a study.

        Raises:
            StudyError: there is no recommendation yet.
        """
        return cls(study, load_recipe(study), read_json(study.recommendation_file))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs table."""
        return self.study.runs()

    @cached_property
    def confirmed(self) -> bool:
        """Whether every confirming run has finished."""
        if not self.study.confirm_file.is_file():
            return False
        return bool(confirm.confirmation_table(self.study)["observed"].notna().all())
