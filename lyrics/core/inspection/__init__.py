"""What a model needs and consists of, before it is built."""
