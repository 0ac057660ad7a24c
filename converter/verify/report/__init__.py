"""What a verification found: as text, Markdown, HTML and JSON."""
