"""Overage to invoices: the real reporter, Stripe's double and an exact table, where everything goes wrong."""
