"""Gives the tests of this folder the running stack."""

from tests.support.stack import stack

__all__ = ["stack"]
