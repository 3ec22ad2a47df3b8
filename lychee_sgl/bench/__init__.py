"""Speed of a whole engine, measured over HTTP against stock SGLang in the same run."""
