"""Chaos through sockets: function processes behind the Runtime API, an exact engine, everything between them broken.

`tests/simulation` proves the ledger's steps in a made world; here the real processes, clients and connections run, and
are killed. What is meant by each count: docs/chaos.md.
"""
