"""Weight-sharing networks over a space of choices."""
