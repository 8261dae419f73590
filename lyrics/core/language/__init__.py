"""Text of objects and prompts, as codecs, tokens and conversations."""
