"""What a server of adapters must be told of a rank."""

from __future__ import annotations

# `MaxLoRARanks` in vllm/config/lora.py of vLLM 0.33.0.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def serving_line(rank: int) -> str:
    """The smallest `max_lora_rank` with which vLLM serves a rank.

    >>> serving_line(12)
    'vLLM serves rank 12 with --max-lora-rank 16; it accepts 1, 8, 16, 32, 64, 128, 256, 320, 512 (0.33.0)'
    """
    accepted = f"it accepts {', '.join(map(str, VLLM_RANKS))} (0.33.0)"
    smallest = next((each for each in VLLM_RANKS if each >= rank), None)
    if smallest is None:
        return f"vLLM serves no adapter of rank {rank}, {accepted}: merge it into the base model"
    return f"vLLM serves rank {rank} with --max-lora-rank {smallest}; {accepted}"
