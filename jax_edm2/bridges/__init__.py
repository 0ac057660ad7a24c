"""Converted networks as other projects know them, a file for each: classes, terms and call signatures of theirs."""
