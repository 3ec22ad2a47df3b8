"""Quality over HTTP: tasks, a runner for any OpenAI-compatible server, reports with intervals, the regression gate."""
