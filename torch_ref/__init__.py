"""The PyTorch reference: the EDM2 network in any precision, its training, and a writer of NVlabs snapshots."""
