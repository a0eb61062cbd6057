"""Overage to invoices: the real reporter, Stripe's double and an exact table, in a world where everything goes wrong."""
