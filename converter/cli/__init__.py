"""The command lines: each parses, makes one library call, and reports."""
