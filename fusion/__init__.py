"""Layers: geometry, fusion of trajectories, canvases, edit plans, layer files."""
