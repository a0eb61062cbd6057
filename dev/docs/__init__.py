"""The generated pages of docs/: what code already says, in a form to read. `python -m dev.docs all [--check]`."""
