"""The named members of the decay family, each the special case that a paper stands for."""

from __future__ import annotations

from decaylaws.laws.decay.parameters import Member

MEMBERS: dict[str, Member] = {
    member.name: member
    for member in (
        Member("effective", mixing="power"),
        Member("effective_gain", mixing="power", gain_follows=True),
        Member("effective_saturating", mixing="power", relaxing="loss"),
        Member("learning", mixing="power", relaxing="loss", own_progress=True),
        Member("learning_gain", mixing="power", relaxing="loss", own_progress=True, gain_follows=True),
        Member("relaxed"),
        Member("relaxed_gain", gain_follows=True),
        Member("saturating", relaxing="loss"),
        Member("saturating_gain", relaxing="loss", gain_follows=True),
        Member("relaxed_log", mixing="log"),
        Member("saturating_log", mixing="log", relaxing="loss"),
        Member("relaxed_exponential", mixing="exponential"),
        Member("saturating_exponential", mixing="exponential", relaxing="loss"),
        Member("no_annealing", annealing=False),
        Member("inverse_sum", relaxing="none", progress=False, annealing=False),
        Member("tissue", mixing="none"),
        Member("chinchilla", mixing="none", annealing=False),
    )
}
