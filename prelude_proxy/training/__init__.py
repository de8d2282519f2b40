"""Data set to model: the only place that imports xgboost."""
