"""Tollgate: sell access to Claude from your own AWS account."""
