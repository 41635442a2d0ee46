"""Where everything lies in a study directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SETTINGS_NAME = "study.yaml"


@dataclass(frozen=True)
class StudyPaths:
    """The files and folders of a study directory, whether they exist or not.

    ::

        study.yaml       what the user wants
        corpus/          tokenised sources and manifest.json
        plan.json        the design: every planned run
        proposals.json   the runs that a sampler proposed after the design
        storage.sqlite3  Optuna: queue and results (unless study.yaml names another storage)
        checkpoints/     trunks, and members that were interrupted
        checkpoints.json what the folders of checkpoints that study.yaml names say of themselves
        runs.csv         one row per finished run, of earlier plans too; curves.csv: one row per evaluation
        laws/            the fitted laws and their held-out errors
        recipe.yaml      the recommendation
        confirm.json     what was predicted before the confirming runs started
        exports/  launch/  report.html  logs/
        evaluations/NAME evaluations of checkpoints that the report shows

    Args:
        root: the directory.
    """

    root: Path

    @property
    def settings_file(self) -> Path:
        """What the user wants."""
        return self.root / SETTINGS_NAME

    @property
    def corpus_dir(self) -> Path:
        """Prepared shards and their manifest."""
        return self.root / "corpus"

    @property
    def checkpoint_dir(self) -> Path:
        """Checkpoints of trunks and of interrupted members."""
        return self.root / "checkpoints"

    @property
    def held_file(self) -> Path:
        """What was read of the checkpoints that study.yaml names."""
        return self.root / "checkpoints.json"

    @property
    def plan_file(self) -> Path:
        """The design."""
        return self.root / "plan.json"

    @property
    def proposals_file(self) -> Path:
        """Runs that a sampler proposed after the design."""
        return self.root / "proposals.json"

    @property
    def calibration_file(self) -> Path:
        """Measured speed of the machine that planned last."""
        return self.root / "calibration.json"

    @property
    def arithmetic_file(self) -> Path:
        """What ``auto`` in ``train`` came to when the sweep was first planned."""
        return self.root / "arithmetic.json"

    @property
    def runs_file(self) -> Path:
        """The runs table."""
        return self.root / "runs.csv"

    @property
    def curves_file(self) -> Path:
        """The curves table."""
        return self.root / "curves.csv"

    @property
    def read_outs_file(self) -> Path:
        """Losses of decays that constant-LR runs emulate."""
        return self.root / "read_outs.csv"

    @property
    def law_file(self) -> Path:
        """The fitted decay law."""
        return self.root / "laws" / "decay.json"

    @property
    def fit_file(self) -> Path:
        """Held-out errors of every law and baseline."""
        return self.root / "laws" / "fit.json"

    @property
    def on_the_way_file(self) -> Path:
        """Curves of the runs that had not ended when ``fit --partial`` was asked last."""
        return self.root / "laws" / "on_the_way.json"

    @property
    def recommendation_file(self) -> Path:
        """Everything that the search found, for the report."""
        return self.root / "laws" / "recommendation.json"

    @property
    def recipe_file(self) -> Path:
        """The recommended recipe."""
        return self.root / "recipe.yaml"

    @property
    def confirm_file(self) -> Path:
        """Predictions stored before the confirming runs."""
        return self.root / "confirm.json"

    @property
    def export_dir(self) -> Path:
        """Files for other trainers, a folder each."""
        return self.root / "exports"

    @property
    def exported_runs_file(self) -> Path:
        """Which runs were written for an external trainer, and where its counters stand at their ends."""
        return self.root / "exported_runs.json"

    @property
    def launch_dir(self) -> Path:
        """The launched run: checkpoints, metrics, Hugging Face export."""
        return self.root / "launch"

    @property
    def evaluation_dir(self) -> Path:
        """Evaluations of checkpoints, a folder each (``decaylaws evaluate --out``)."""
        return self.root / "evaluations"

    @property
    def report_file(self) -> Path:
        """The decision report."""
        return self.root / "report.html"

    @property
    def log_dir(self) -> Path:
        """Standard error of the workers."""
        return self.root / "logs"

    @property
    def folder_file(self) -> Path:
        """Identity of the folder, for machines that share a storage: written when a shared storage is first used."""
        return self.root / "folder.json"
