"""cjepa_dist: train causal object-slot world models at scale, and tell whether what they learned is causal."""

__version__ = "0.1.0"
