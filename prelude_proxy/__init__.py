"""A class-aware front door for self-hosted LLM fleets."""

__version__ = "0.1.0"
