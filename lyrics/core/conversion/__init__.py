"""Public checkpoints of other projects -> safetensors in this library's naming."""
