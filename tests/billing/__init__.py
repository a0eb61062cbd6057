"""Webhook schedules: Stripe's double, the real flows and an exact table, in a world where everything goes wrong."""
