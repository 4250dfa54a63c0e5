"""The studio: a local page to blend models, talk with them, and run studies.

``library`` is the folder that it works in, ``recipes`` reads what a page writes, ``blends`` names live
models for the server's gate, ``commands`` makes command lines, ``jobs`` runs them as child processes, and
``routes`` is the page's side of HTTP.
"""
