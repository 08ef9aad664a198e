"""Attention: key masks that hide an object from the self-attention, and keeping the source."""
