"""Which settings exist, which are legal here, and which go together. Pure."""
