"""A page on which people look through a model's eyes: tags, boxes and masks of an image, and questions about it.

``view`` makes what is drawn out of what the model saw, ``talk`` asks the worker (``lyrics.workflows.serve.worker``),
``parts`` exchanges parts of the running model, ``recipes`` writes the same as a command and as Python. Only ``page``
needs gradio.
"""
