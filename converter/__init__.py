"""The tools: reading NVlabs' snapshots, converting them, sampling from them, and verifying the result.

What a command does is a call: `conversion.fetch_and_convert`, `cache_contents`, `sample.sample`, `verify.run.verify`.
On a terminal, these show how far a download is, and print nothing else; `converter.cli` parses and prints, and nothing
imports it.
"""
