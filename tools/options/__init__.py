"""What every script does with its options: parse, check, explain, and load a user's own parts."""
