"""The ledger under every fault: real production code, a simulated table, one integer per run."""
