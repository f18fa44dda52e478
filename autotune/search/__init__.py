"""What to try next, when to stop, who won. Optuna is imported in `study` only."""
