"""How far the cheap ways to a rank can be trusted: sentences from benchmarks/results/fidelity.json."""

LADDER = "TODO"
PROBE = "TODO"
