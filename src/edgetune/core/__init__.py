"""What every layer shares: update types, keys, the ledger, events, errors and the quantised matrix."""
