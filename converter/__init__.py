"""The tools: reading NVlabs' snapshots, converting them, sampling from them, and verifying the result.

What a command does is a call: `conversion.fetch_and_convert`, `cache_contents`, `sample.sample`, and those of
`verify`. They print nothing but, on a terminal, how a download goes; `converter.cli` parses and prints, and nothing
imports it.
"""
