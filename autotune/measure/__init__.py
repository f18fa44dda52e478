"""Run one trial for real. The only floor that touches torch, processes and clocks."""
