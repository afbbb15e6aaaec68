"""The root loop without a client: a root model writes cells, sees bounded output, and ends with FINAL.

:mod:`.loop` is the loop, with everything it touches injected; :mod:`.reply` reads what a model wrote; :mod:`.history` keeps the conversation
within what a model can take; the words are files in ``prompts``.
"""
