"""A stateful double of Stripe for tests and for the local stack; what it promises is in docs/stripe-double.md."""
