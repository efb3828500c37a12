"""Training: the Lightning module, its optimisation, validation, callbacks and dashboards."""
