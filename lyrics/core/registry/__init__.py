"""Which parts exist, and what each says of itself."""
