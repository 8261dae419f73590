"""A server of one model over HTTP, in the form of OpenAI's chat completions.

``requests`` says what a client may ask, ``images`` and ``fetching`` read what it shows; ``jobs`` wait for the
``worker``, which owns the model; ``app`` answers over HTTP behind its ``guard``, and ``server`` runs it. Only ``app``
and ``server`` need the packages of the extra ``serve``.
"""
