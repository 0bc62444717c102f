"""How the shipped weights are made: codec, teacher, student, rewards, detectors, over one resumable loop."""
