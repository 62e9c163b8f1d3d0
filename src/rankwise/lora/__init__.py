"""The mathematics of adapters in packs."""
