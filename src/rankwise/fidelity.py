"""How far the cheap ways to a rank can be trusted: sentences from benchmarks/results/fidelity.json."""

LADDER = (
    "On 5 tasks the ladder's answer was one that the full grid allows in 5 of 5 (48 to 100 %, 95 % sure), losing at "
    "worst 0.0 times the margin, for 61 % of its training steps (median): docs/fidelity.md."
)
PROBE = (
    "On 5 tasks, three seeds each, the rank that the probe named was one that the full grid allows in 8 of "
    "15, next to that in 4, further off in 3, losing at worst 9.1 times the margin, for 4 % of its time (median): "
    "docs/fidelity.md."
)
