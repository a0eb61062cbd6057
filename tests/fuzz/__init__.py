"""The data plane fed with what nobody should send: seeded, each input replayed by one integer (docs/chaos.md)."""
