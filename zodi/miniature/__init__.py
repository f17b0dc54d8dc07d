"""The world that the method is shown in: procedural streets in six domains, and how its small model was trained."""
