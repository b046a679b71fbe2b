"""The lessons' graded exercises: `lesson_05.py` has those of lesson 5."""
