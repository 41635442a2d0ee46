"""Regressions and laws that predict loss from the mixture of sources.

All of them take shares [runs, sources] and losses [runs] or [runs, targets], and answer with intervals::

    law = InverseSum().fit(shares, losses)
    law.predict(new_shares, interval=0.9)

``formulas`` are in ``families``; ``base`` holds what they share; ``recalibrate`` carries a fit on small proxies
to the scale of a few larger runs.
"""
