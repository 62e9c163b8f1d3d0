"""How far the cheap ways to a rank can be trusted: sentences from benchmarks/results/fidelity.json."""

LADDER = (
    "On 6 tasks the ladder's answer was one that the full grid allows in 6 of 6, losing 0.0 margins at worst, "
    "for 56 % of its training steps (median): docs/fidelity.md."
)
PROBE = (
    "On 6 tasks, three seeds each, the rank that the probe named was one that the full grid allows in 8 of "
    "18, next to that in 7, further off in 3, losing 9.2 margins at worst, for 3 % of its time (median): "
    "docs/fidelity.md."
)
