"""The studio: a local web page to blend models, chat with them, and run studies.

``library`` is the studio's folder, ``recipes`` reads the recipes that a page writes, ``blends`` names
live models for the server, ``commands`` builds command lines, ``jobs`` runs them as child processes, and
``routes`` has the page's HTTP routes.
"""
