"""From a URL to a file on this disk: requests that end, one download for many processes, and the cache."""
