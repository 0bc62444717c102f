"""How the shipped weights are made: one file per part (codec, teacher, student, reward) over one resumable loop."""
