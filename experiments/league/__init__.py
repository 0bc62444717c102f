"""What `reelgym selfplay` is made of: the runs, what is measured on them, tables and pictures."""
