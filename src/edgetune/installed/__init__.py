"""The ledger on the device: a base installed once, and small signed files that change it and change it back."""
