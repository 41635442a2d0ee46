"""``tracker`` of ``study.yaml``: where the figures of runs are shown beside the study's own tables."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from decaylaws.settings.section import Section


class TrackerSettings(Section):
    """A tracker that the runs of the study also log to; it decides no number. ``tracker: trackio`` is short for its
    ``kind``."""

    kind: Literal["trackio", "wandb"] = Field(
        description="Trackio, which keeps runs on this machine by default, or Weights & Biases"
    )
    project: str | None = Field(
        None, description="project in which the runs appear; the study's name by default"
    )

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value
