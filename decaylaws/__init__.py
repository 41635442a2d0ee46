"""decaylaws: plan the decay of a language model from small experiments.

``import decaylaws`` is light: no torch, no optimiser, no plotting. Take what you need from the submodules::

    from decaylaws.schedules import warmup_stable_decay
    from decaylaws.mixtures import Mixture, MixtureSpace
    from decaylaws.laws.annealing import MultiPowerLaw
"""

__version__ = "0.1.0"
