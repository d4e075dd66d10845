"""cjepa_dist: train causal object-slot world models at scale, and test whether they are causal."""

__version__ = "0.1.0"
