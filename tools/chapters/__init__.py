"""Several scripts run one after the other as one piece of work."""
