"""The budget policy: which budget a request gets, by whose word, and what it holds under load."""
