"""The environment of 'make test-targets' holds every trainer that a registry has; what is missing is said."""

from __future__ import annotations

import sys

import pytest

from tests.exporters.trainers import import_trainer, unused_by

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend
MODULES = {
    "torchtitan.models.llama3.config_registry": "llama3_8b",
    "olmo_core.data.source_mixture": "SourceMixtureList",
    "megatron.core.optimizer_param_scheduler": "OptimizerParamScheduler",
    "megatron.bridge.training.config": "ConfigContainer",
    "nanotron.config": "get_config_from_file",
    "nanotron.helpers": "lr_scheduler_builder",
    "levanter.main.train_lm": "TrainLmConfig",
    "levanter.optim": "AdamConfig",
    "llmfoundry.optim.scheduler": "InverseSquareRootWithWarmupScheduler",
    "composer.optim": "ComposerScheduler",
    "omegaconf": "OmegaConf",
}


@pytest.mark.parametrize("name", MODULES)
def test_trainers_can_be_imported(name: str) -> None:
    assert callable(getattr(import_trainer(name), MODULES[name]))
    for package in unused_by(name):
        # a stand-in stays inside the trainer that was imported with it
        assert not hasattr(sys.modules.get(package), "__getattr__")


def test_what_is_missing_is_said() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"needs the module 'no_trainer', which is not installed"):
        import_trainer("no_trainer.optim")
