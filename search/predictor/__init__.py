"""What networks are worth before they are trained, from a few truths or from none."""
