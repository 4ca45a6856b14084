"""Running a mesh: what operators use, and the core does without."""
