"""Laws that predict loss: one solver, one estimator contract, several families.

``solver`` and ``base`` are the shared core; ``annealing`` predicts loss curves from learning-rate schedules,
``scaling`` from size and tokens, ``mixing`` from data mixtures, ``decay`` the outcome of a decay from a
checkpoint.
"""
