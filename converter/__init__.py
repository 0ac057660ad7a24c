"""The tools: reading NVlabs' snapshots, converting them, and (in later versions) verifying and downloading them."""
