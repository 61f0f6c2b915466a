"""Dialogues with a relay that misbehaves by a seed, and an oracle for the reports."""
