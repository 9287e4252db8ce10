"""HTTP in and out: the only place that knows Starlette. It asks the pipeline and nothing below it."""
