"""Everything that knows what a Lyrics model is, and nothing that knows which parts exist."""
