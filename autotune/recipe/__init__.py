"""How learning goes with the batch size. Pure."""
